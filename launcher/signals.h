// Signals that ask a run to stop.
#pragma once

namespace lockstep {

// After listen(), the first SIGINT, SIGTERM or SIGUSR1 only sets a flag, which loops poll between two steps; a second
// one ends the process at once, as if it had never been caught. "Second" means half a second later or more: launchers
// and terminals deliver one request several times over.
//
// One in a process, because signal handlers are the process's. A command that polls calls listen() before it starts
// threads; for the others signals keep their usual effect.
class StopSignal {
 public:
  StopSignal() = default;
  // Puts the previous handlers back.
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  // With kIsCounted a second signal only sets repeated(): for a process that has others to end before itself.
  enum class Second { kEndsTheProcess, kIsCounted };
  void listen(Second second = Second::kEndsTheProcess);
  [[nodiscard]] bool repeated() const;
  // May be called from any thread.
  [[nodiscard]] bool requested() const { return number() != 0; }
  // The first signal's number, 0 before it.
  [[nodiscard]] int number() const;

 private:
  bool listening_ = false;
};

}  // namespace lockstep
