// A parameter server: sums the buffers of workers that have only TCP between them (docs/server-protocol.md).
//
// Workers come and wait. When as many are there as the job has, they become a group (group.h), with a rank each, and
// train. A worker that sends faster than the others can follow is not read from until they have caught up.
//
// When a worker is lost, or keeps the others waiting for too long, the group is over, and everybody is told who it was.
// The workers come again, with the weights that they have, and the next group begins when all are there: the lost one,
// or another in its place. When nobody comes for too long, fewer may go on, or the job ends. Of several servers the
// first, part 0, decides which workers make up a group; the others follow.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/log.h"
#include "comm/control/token.h"
#include "comm/server/tls.h"

namespace lockstep::server {

class Server {
 public:
  struct Options {
    control::JobToken token = control::JobToken::random();
    std::string listen = "127.0.0.1";  // a numeric address of this machine; 0.0.0.0: all of them
    std::uint16_t port = 0;            // 0: any that is free
    int workers = 1;
    // The fewest that may train without the others: the largest power of two that is there, not below this. Those that
    // come later are taken in between two steps. 0: all of `workers`.
    int min_workers = 0;
    // How long lost workers are waited for; 0: the job ends with the first that is lost.
    std::chrono::milliseconds wait{0};
    // Part `part` of `parts` of every buffer is this server's: what workers expect it to be.
    int part = 0;
    int parts = 1;
    // How often slow workers are named.
    std::chrono::milliseconds slow_period{30'000};
    std::shared_ptr<const TlsContext> tls = {};  // null: connections are not encrypted
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
  // Whether one is connected now.
  [[nodiscard]] bool has_workers() const;

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
