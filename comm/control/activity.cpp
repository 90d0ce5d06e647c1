#include "comm/control/activity.h"

#include <fmt/format.h>

namespace lockstep::control {

std::string describe(Phase phase, std::int64_t step, std::int64_t part) {
  switch (phase) {
    case Phase::kStarting:
      return "starting";
    case Phase::kLoading:
      return "loading";
    case Phase::kData:
      return fmt::format("step {}: waiting for data", step);
    case Phase::kGradients:
      return fmt::format("step {}: gradients of micro-batch {}", step, part);
    case Phase::kReduce:
      return fmt::format("step {}: reduce bucket {}", step, part);
    case Phase::kExchange:
      return fmt::format("step {}: exchange of losses", step);
    case Phase::kUpdate:
      return fmt::format("step {}: optimizer", step);
    case Phase::kEvaluate:
      return fmt::format("step {}: evaluate batch {}", step, part);
    case Phase::kSnapshot:
      return fmt::format("step {}: snapshot for a checkpoint", step);
    case Phase::kSaving:
      return fmt::format("step {}: waiting for a checkpoint to be written", step);
    case Phase::kEnding:
      return "ending";
  }
  return "";
}

void Activity::enter(Phase phase, std::int64_t step, std::int64_t part) {
  const auto now = std::chrono::steady_clock::now();
  const std::lock_guard lock(mutex_);
  state_.phase = phase;
  state_.step = step;
  state_.part = part;
  ++state_.changes;
  entered_ = now;
}

void Activity::begin_run(std::int64_t completed_step, std::int64_t total_steps) {
  const std::lock_guard lock(mutex_);
  state_.completed_step = completed_step;
  state_.first_step = completed_step;
  state_.total_steps = total_steps;
  state_.saved_step = completed_step > 0 ? completed_step : -1;
}

void Activity::end_step(std::int64_t step, double loss, double tokens_per_s) {
  const std::lock_guard lock(mutex_);
  state_.completed_step = step;
  state_.loss = loss;
  state_.tokens_per_s = tokens_per_s;
}

void Activity::published(std::int64_t step, double seconds) {
  const std::lock_guard lock(mutex_);
  state_.saved_step = step;
  state_.save_seconds = seconds;
}

ActivityState Activity::now() const {
  const std::lock_guard lock(mutex_);
  ActivityState state = state_;
  state.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - entered_).count();
  return state;
}

}  // namespace lockstep::control
