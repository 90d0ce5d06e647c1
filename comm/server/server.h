// A parameter server: sums the buffers of workers that have only TCP between them (docs/server-protocol.md).
//
// It waits for a fixed number of workers, each with a rank. A worker cuts a buffer among the servers and its part into
// pieces; a server adds the workers' versions of a piece along the tree of docs/determinism.md as they arrive, and
// sends the sum back while further pieces come in. It also passes bytes on from one worker to the others. A worker that
// sends faster than the others can follow is not read from until they have caught up.
//
// When a worker is lost, or one waits too long for another, every worker is told who, and the job is over.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/log.h"
#include "comm/control/token.h"

namespace lockstep::server {

class Server {
 public:
  struct Options {
    control::JobToken token = control::JobToken::random();
    std::string listen = "127.0.0.1";  // a numeric address of this machine; 0.0.0.0: all of them
    std::uint16_t port = 0;            // 0: any that is free
    int workers = 1;
    // Part `part` of `parts` of every buffer is this server's: what workers expect it to be.
    int part = 0;
    int parts = 1;
    // Lines for people. Called from the server's thread.
    std::function<void(LogLevel, const std::string&)> say = {};
  };
  // Listens. Throws Error(kUsage) for an address that is none, Error(kIo) when it cannot be had.
  explicit Server(Options options);
  // Ends all connections, which workers that have not closed take for the server's death.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  [[nodiscard]] std::uint16_t port() const;
  // Whether a worker has ever come.
  [[nodiscard]] bool has_begun() const;

  struct End {
    bool orderly = false;  // all workers have closed
    std::string cause;     // unless orderly
  };
  // How the job ended, once it has and all workers have been told; nothing when it has not within `time`.
  [[nodiscard]] std::optional<End> wait_for_end(std::chrono::milliseconds time);
  // Ends the job for this reason: every worker fails with it.
  void end(const std::string& cause);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lockstep::server
