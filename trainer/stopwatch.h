// Milliseconds of a monotonic clock.
#pragma once

#include <chrono>

namespace lockstep {

[[nodiscard]] inline double now_ms() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace lockstep
