#include "trainer/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace lockstep {

double learning_rate(const Config& config, std::int64_t completed_steps) {
  const ScheduleConfig& schedule = config.schedule;
  const double high = config.optimizer.lr;
  const double low = schedule.min_lr;
  const std::int64_t steps = config.train.steps;
  const std::int64_t t = std::min(completed_steps + 1, steps);
  if (t <= schedule.warmup_steps) {
    return high * static_cast<double>(t) / static_cast<double>(schedule.warmup_steps);
  }
  // How much of the decay that starts at step `begin` lies behind; at most 1, which it is in the last step.
  const auto share_since = [&](std::int64_t begin) {
    return static_cast<double>(t - begin) / static_cast<double>(steps - begin);
  };
  switch (schedule.name) {
    case ScheduleName::kConstant:
      return high;
    case ScheduleName::kLinear:
      return std::lerp(high, low, share_since(schedule.warmup_steps));
    case ScheduleName::kCosine: {
      const double wave = std::cos(std::numbers::pi * share_since(schedule.warmup_steps));
      return low + (high - low) * 0.5 * (1.0 + wave);
    }
    case ScheduleName::kWsd: {
      const std::int64_t begin = steps - decay_steps(config);
      return t <= begin ? high : std::lerp(high, low, share_since(begin));
    }
  }
  return high;
}

}  // namespace lockstep
