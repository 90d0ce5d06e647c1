// Training through parameter servers that hold the weights (comm.mode bounded and async): both sides of it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "comm/server/protocol.h"
#include "comm/server/tls.h"
#include "launcher/commands/command.h"
#include "trainer/train_job.h"

namespace lockstep {

// A worker, from its connections to its end. `request` has a resolved stop and save; returns the exit code.
[[nodiscard]] int train_through_store(TrainRequest request, CommandContext& context);

struct StoreJob {
  std::filesystem::path token_file;
  std::string listen;
  std::uint16_t port = 0;
  int workers = 1;
  int part = 0;
  int parts = 1;
  server::Mode mode = server::Mode::kBounded;
  std::shared_ptr<const server::TlsContext> tls = {};
  std::filesystem::path state;
  int threads = 1;
};
// A server, until its job ends, or a signal ends it while no worker is there; returns the exit code. Throws
// Error(kPeerLost) when it did not end in order.
[[nodiscard]] int serve_store(const StoreJob& job, CommandContext& context);

}  // namespace lockstep
