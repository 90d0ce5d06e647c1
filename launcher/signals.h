// Signals that ask a run to stop.
#pragma once

namespace lockstep {

// While one exists, the first SIGINT, SIGTERM or SIGUSR1 only sets a flag, which loops poll between two steps; a second
// signal of these ends the process at once, as if it had never been caught. One at a time in a process (signal handlers
// are the process's), made before any thread is started. requested() may be called from any thread.
class StopSignal {
 public:
  StopSignal();
  // Puts the previous handlers back.
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  [[nodiscard]] bool requested() const;
  // The first signal's number, 0 before it.
  [[nodiscard]] int number() const;
};

}  // namespace lockstep
