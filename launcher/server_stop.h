// What a parameter server makes of signals.
#pragma once

#include <chrono>
#include <optional>

#include "base/log.h"
#include "launcher/signals.h"

namespace lockstep {

// The first signal leaves the workers time to save and end, and says so; the second ends the job at once. Workers that
// are not there are not waited for, but for a moment, in which those may come back that were just there.
class ServerStop {
 public:
  // Both outlive it. `signal` counts the second one (StopSignal::Second::kIsCounted).
  ServerStop(const StopSignal& signal, Log& log) : signal_(signal), log_(log) {}

  enum class Due {
    kNothing,
    kWish,  // once, with the first signal: the workers are to save and end
    kEnd,   // the job ends now
  };
  // Asked all the time, also before there is a signal. `is_anyone_here`: a worker is connected.
  [[nodiscard]] Due look(bool is_anyone_here);

 private:
  using Clock = std::chrono::steady_clock;

  const StopSignal& signal_;
  Log& log_;
  std::optional<Clock::time_point> seen_;       // a worker
  std::optional<Clock::time_point> signalled_;  // for the first time
};

}  // namespace lockstep
