#include "launcher/job/restart_policy.h"

#include <fmt/format.h>

#include <algorithm>

#include "launcher/commands/command.h"

namespace lockstep {
namespace {

using std::chrono::milliseconds;

// A failure at the same step so often in a row is no accident.
constexpr int kSameStep = 3;
// Starts in a row that are refused or do not come up, of a job that was well before: the pauses between them are 24
// minutes in all, in which a file server is back. Fewer where nothing says that the job can come up.
constexpr int kMostInAnOutage = 30;
constexpr int kMostNeverUp = 3;

milliseconds next_back_off(milliseconds last) { return std::clamp(2 * last, milliseconds(500), milliseconds(60'000)); }

}  // namespace

RestartPolicy::Verdict RestartPolicy::after(const std::string& what, const Failure& failure) {
  Record& record = records_[what];
  const bool was_good_before = failure.refused && ever_opened_;
  record.refusals = was_good_before ? record.refusals + 1 : 0;
  if ((failure.again_is_useless && !was_good_before) || record.refusals >= kMostInAnOutage) {
    return {failure.refused ? kExitUsage : kExitFailed, failure.cause};
  }
  // What keeps ranks from coming up may pass: a host that reboots, a file system that is not mounted yet.
  const bool is_telling = failure.is_telling && !was_good_before;
  record.not_up = is_telling ? 0 : record.not_up + (was_good_before ? 0 : 1);
  if (record.not_up >= (ever_opened_ ? kMostInAnOutage : kMostNeverUp)) {
    return {kExitFailed, fmt::format("failed {} times without coming up: {}; starting again would not help",
                                     record.not_up, failure.cause)};
  }
  record.at_same_step = !is_telling ? 0 : failure.step == record.failed_step ? record.at_same_step + 1 : 1;
  record.failed_step = failure.step;
  if (record.at_same_step >= kSameStep) {
    return {kExitFailed, fmt::format("failed {} times after step {}: {}; starting again would not help",
                                     record.at_same_step, failure.step, failure.cause)};
  }
  if (failure.is_counted && restarts_ >= max_restarts_) {
    return {kExitFailed, fmt::format("failed after step {}: {}; {} restart{} made, --max-restarts allows no more",
                                     failure.step, failure.cause, restarts_, restarts_ == 1 ? "" : "s")};
  }
  restarts_ += failure.is_counted ? 1 : 0;
  record.back_off = failure.progressed ? milliseconds(0) : next_back_off(record.back_off);
  return {{},
          fmt::format("failed after step {}: {}; starting {}{}again (restart {} of at most {})", failure.step,
                      failure.cause, what, what.empty() ? "" : " ", restarts_, max_restarts_),
          record.back_off};
}

RestartPolicy::Verdict RestartPolicy::without_hosts(std::size_t hosts) {
  if (restarts_ >= max_restarts_) {
    return {kExitFailed, "none of the job's hosts can be used; --max-restarts allows no more"};
  }
  ++restarts_;
  milliseconds& back_off = records_[""].back_off;
  back_off = next_back_off(back_off);
  return {{}, fmt::format("none of the job's {} hosts can be used; asking again", hosts), back_off};
}

}  // namespace lockstep
