// A parameter server that holds its part of the weights: workers push gradients, which it applies as they come, and
// pull weights (comm.mode bounded and async, docs/server-protocol.md).
//
// It waits for a fixed number of workers, each with a rank, and answers their pulls once all have come and one of them
// has said what the weights are. In mode bounded it answers the pull for a step when the slowest worker that is there
// is not more than so many steps behind. A worker that is lost is missed by nobody; it, or another process in its
// place, may come back and goes on with the rank's next step. The first server of a job also names the worker that
// leads, which evaluates and saves: one that is lost is replaced.
//
// The job ends when all workers that are left have said that they are done. With a folder for its state
// (Options::state) the server can be killed and started again meanwhile: workers come back, and nothing is lost or
// applied twice. The folder is emptied when the job ends in order, or because a loss was not finite.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/log.h"
#include "comm/control/token.h"
#include "comm/server/store.h"
#include "comm/server/tls.h"

namespace lockstep::server {

class StoreServer {
 public:
  struct Options {
    control::JobToken token = control::JobToken::random();
    std::string listen = "127.0.0.1";  // a numeric address of this machine; 0.0.0.0: all of them
    std::uint16_t port = 0;            // 0: any that is free
    int workers = 1;
    // Elements of part `part` of `parts` are this server's: what workers expect it to be.
    int part = 0;
    int parts = 1;
    Mode mode = Mode::kBounded;                  // or kAsync
    std::shared_ptr<const TlsContext> tls = {};  // null: connections are not encrypted
    std::filesystem::path state;                 // empty: a killed server ends the job
    MakeUpdateRule make_rule;
    // How long a worker that is gone may take to come back before the job ends, or another one leads, without it.
    std::chrono::milliseconds rejoin{5'000};
    // Lines for people. Called from the server's thread.
    std::function<void(LogLevel, const std::string&)> say = {};
  };
  // Listens, with the state that was kept, if any. Throws Error(kUsage) for an address that is none, Error(kIo) when it
  // cannot be had, and what StoreJournal and Store::recover() throw.
  explicit StoreServer(Options options);
  // Ends all connections.
  ~StoreServer();
  StoreServer(const StoreServer&) = delete;
  StoreServer& operator=(const StoreServer&) = delete;

  [[nodiscard]] std::uint16_t port() const;
  // Whether a worker has ever come, to this process or to one before it.
  [[nodiscard]] bool has_begun() const;
  // Whether one is connected now.
  [[nodiscard]] bool has_workers() const;

  struct End {
    bool orderly = false;  // the workers that were left have closed
    std::string cause;     // unless orderly
    std::uint64_t updates = 0;
    std::uint64_t missing = 0;  // steps of workers that were lost
    Staleness staleness;
  };
  // How the job ended, once it has and all workers have been told; nothing when it has not within `time`.
  [[nodiscard]] std::optional<End> wait_for_end(std::chrono::milliseconds time);
  // As a worker's wish: all save and end.
  void stop();
  // Ends the job for this reason: every worker fails with it.
  void end(const std::string& cause);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lockstep::server
