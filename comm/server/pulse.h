// Whether parameter servers answer, for who has started them: one that hangs keeps its port and its process, and its
// workers can only wait for it.
//
// Each server is asked again and again, over a connection that it keeps beside those of its workers. All functions are
// safe from any thread.
#pragma once

#include <chrono>
#include <memory>
#include <optional>

#include "comm/control/token.h"
#include "comm/server/session.h"
#include "comm/server/tls.h"

namespace lockstep::server {

class Pulse {
 public:
  struct Options {
    control::JobToken token = control::JobToken::random();
    std::shared_ptr<const TlsContext> tls = {};
    std::chrono::milliseconds period{500};  // between two questions
  };
  explicit Pulse(Options options);
  ~Pulse();
  Pulse(const Pulse&) = delete;
  Pulse& operator=(const Pulse&) = delete;

  // From now on server `number` is the one at this address; what was known of an earlier one is forgotten.
  void watch(int number, const ServerAddress& address);
  void forget(int number);
  [[nodiscard]] bool is_watched(int number) const;
  // How long the server has not answered; nothing for one that never has, as from here it may not be reachable.
  [[nodiscard]] std::optional<std::chrono::milliseconds> silence_of(int number) const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lockstep::server
