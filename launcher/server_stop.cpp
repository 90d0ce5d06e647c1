#include "launcher/server_stop.h"

namespace lockstep {
namespace {

// Who signals a server most often signals the workers as well, which need it for their last step and save.
constexpr std::chrono::seconds kGrace{30};
// How long links take to be made again, and workers to regroup.
constexpr std::chrono::seconds kReturn{2};

}  // namespace

ServerStop::Due ServerStop::look(bool is_anyone_here) {
  const auto now = Clock::now();
  if (is_anyone_here) {
    seen_ = now;
  }
  if (!signal_.requested()) {
    return Due::kNothing;
  }
  const bool is_first = !signalled_;
  signalled_ = signalled_.value_or(now);
  const bool is_deserted = !seen_ || now - *seen_ >= kReturn;
  if (is_deserted || signal_.repeated() || now - *signalled_ >= kGrace) {
    return Due::kEnd;
  }
  if (!is_first) {
    return Due::kNothing;
  }
  log_.info("serve: signal {}; the workers have {} s to save and end (a second signal ends the job at once)",
            signal_.number(), kGrace.count());
  return Due::kWish;
}

}  // namespace lockstep
