// The side that is watched: a thread in each worker that tells the coordinator that it lives and what it does, and
// hears what is wanted of it.
//
// A worker holds a lease: when it has heard nothing from the coordinator for silence_ms, it is told to end, because the
// coordinator takes it for lost by then and may start another in its place.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "comm/control/activity.h"
#include "comm/control/message.h"
#include "comm/control/token.h"

namespace lockstep::control {

// Where a coordinator can be reached: numeric addresses, tried in turn.
struct CoordinatorAddress {
  std::vector<std::string> hosts;
  std::uint16_t port = 0;
  JobToken token = JobToken::random();
};

class Client {
 public:
  struct Options {
    CoordinatorAddress coordinator;
    Hello hello;
    int silence_ms = 5'000;
    // Called from the client's thread. None is called after farewell() has returned.
    std::function<void(Order)> on_request;                  // kSave, kStop
    std::function<void(const std::string& reason)> on_end;  // the process is to end at once
    // The coordinator's process is no more: its address refuses connections. Nothing is called after this.
    std::function<void(const std::string& last_phase)> on_coordinator_gone;
  };
  // Starts the thread; what goes wrong from then on is told by on_end. `activity` outlives the client.
  Client(Options options, const Activity& activity);
  // Without farewell() the coordinator takes it for the worker's death.
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  // Tells the coordinator why this worker ends, and waits shortly until it has heard. Afterwards the client is silent.
  void farewell(const Farewell& farewell);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// Asks a coordinator from outside of its job. Throws Error(kPeerLost, kTimeout) when it cannot be reached, and
// Error(kUsage) when the token is not its.
[[nodiscard]] JobState ask(const CoordinatorAddress& coordinator, Question question, int deadline_ms);

}  // namespace lockstep::control
