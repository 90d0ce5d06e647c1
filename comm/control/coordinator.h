// The side that watches: accepts the workers of a job, hears their heartbeats, names who is in trouble, and passes
// requests on.
//
// It runs in a thread of its own, inside `lockstep launch` or inside rank 0. Workers that do not know the job's token
// get no further than the handshake; connections that have not finished it are limited in number and time.
// All member functions may be called from any thread; the callbacks come from the coordinator's own.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/control/message.h"
#include "comm/control/roster.h"
#include "comm/control/token.h"

namespace lockstep::control {

class Coordinator {
 public:
  struct Options {
    JobToken token = JobToken::random();
    bool on_this_machine_only = true;  // listens on the loopback address, else on all of them
    int silence_ms = 5'000;            // a worker is named at the latest this long after its last sign of life; > 0
    int still_ms = 300'000;            // see Roster::Options
    int start_ms = 600'000;
    bool replaces_workers = false;  // see Roster::Options; the loss of one is told, and does not end the others
    // What it found out since the last call. After fatal trouble all workers have been told to end at once.
    std::function<void(const std::vector<Trouble>&)> on_trouble;
    // A worker that lives in this process and cannot be heard when the process stands still: told to the others, so
    // that they can say what it was doing. May be empty.
    std::function<std::string()> own_phase = {};
  };
  // Listens. Throws Error(kIo) when there is no port to be had.
  explicit Coordinator(Options options);
  // Closes all connections; workers that have not said farewell take that as the coordinator's death.
  ~Coordinator();
  Coordinator(const Coordinator&) = delete;
  Coordinator& operator=(const Coordinator&) = delete;

  [[nodiscard]] std::uint16_t port() const;

  // Forgets the workers of the attempt before; from now on `world` of them are expected.
  void begin_attempt(int attempt, int world);
  // Another process is to be this rank of the attempt; see Roster::replace().
  void replace(int rank);
  // Passed on to every worker, also to those that come up later in this attempt and the next ones.
  void request_stop();
  void request_save();
  // Tells every worker to end at once. Returns when it has been sent, or after a short while.
  void end(const std::string& reason);

  [[nodiscard]] JobState state() const;
  // What all workers of the attempt have ended with; nothing while one has not ended, or when they differ.
  [[nodiscard]] std::optional<int> common_exit_code() const;
  // Waits until every worker of the attempt has said farewell, at most `deadline_ms`.
  void wait_for_farewells(int deadline_ms);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lockstep::control
