#include "launcher/job/recovery_watch.h"

#include <algorithm>
#include <utility>

namespace lockstep {

void RecoveryWatch::add(Replacement replacement, Clock::time_point noticed, Clock::time_point now) {
  open_.push_back({std::move(replacement), noticed});
  settled_at_ = now + delay_;
  step_.reset();
}

std::vector<Replacement> RecoveryWatch::note(std::int64_t step, Clock::time_point now) {
  if (open_.empty() || now < settled_at_) {
    return {};
  }
  if (!step_) {
    step_ = step;
  }
  if (step <= *step_) {
    return {};
  }
  for (Open& open : open_) {
    open.replacement.recovered_s = std::chrono::duration<double>(now - open.noticed).count();
  }
  return give_up();
}

std::vector<Replacement> RecoveryWatch::give_up() {
  std::vector<Replacement> all;
  for (Open& open : open_) {
    all.push_back(std::move(open.replacement));
  }
  open_.clear();
  return all;
}

bool RecoveryWatch::has(const std::string& process) const {
  return std::any_of(open_.begin(), open_.end(), [&](const Open& open) { return open.replacement.process == process; });
}

std::string RecoveryWatch::causes() const {
  std::string text;
  for (const Open& open : open_) {
    text += (text.empty() ? "" : "; ") + open.replacement.cause;
  }
  return text;
}

}  // namespace lockstep
