#include "comm/server/store_roster.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"

namespace lockstep::server {
namespace {

using std::chrono::milliseconds;

// A worker that is this far behind in mode async is worth a line.
constexpr std::uint64_t kSlowSteps = 8;
constexpr milliseconds kSlowFor{2'000};
// How long workers that were here before the server was started again may stay away; comm.timeout_s is not known yet.
constexpr milliseconds kRecoveredPatience{600'000};

}  // namespace

StoreRoster::StoreRoster(const Options& options) : options_(options) {
  require(options.workers >= 1 && options.workers <= static_cast<int>(kMaxWorkers),
          "server: {} workers, expected 1 to {}", options.workers, kMaxWorkers);
  workers_.resize(static_cast<std::size_t>(options.workers));
  for (std::uint32_t rank = 0; rank < workers_.size(); ++rank) {
    workers_[rank].rank = rank;
    workers_[rank].gone_since = Clock::now();
  }
}

void StoreRoster::watch(const StoreState& state, bool is_recovered) {
  state_ = &state;
  if (!is_recovered) {
    return;
  }
  is_started_ = true;
  expected_until_ = Clock::now() + options_.rejoin;
  for (StoreWorker& worker : workers_) {
    worker.has_joined = true;
    worker.name = fmt::format("rank {}", worker.rank);
    worker.patience = kRecoveredPatience;
  }
}

bool StoreRoster::is_missed(const StoreWorker& worker) const {
  const bool is_coming = worker.connection != nullptr && !worker.is_open;  // it reads its data and model
  return !worker.is_here() && !worker.has_said_bye && (is_coming || Clock::now() - worker.gone_since < options_.rejoin);
}

std::uint64_t StoreRoster::missing_joins() const {
  const auto missing =
      std::count_if(workers_.begin(), workers_.end(), [](const StoreWorker& worker) { return !worker.has_joined; });
  return static_cast<std::uint64_t>(missing);
}

std::uint64_t StoreRoster::missing_steps() const {
  std::uint64_t missing = 0;
  for (const StoreWorker& worker : workers_) {
    missing += state_->steps - std::min(state_->steps, completed(worker));
  }
  return wish_ == Ending::kNone ? missing : 0;
}

// Leading. The worker that leads stays it as long as it is there.

void StoreRoster::claim_lead(const StoreWorker& worker) {
  if (!lead_ && options_.names_lead) {
    lead_ = worker.rank;
  }
}

bool StoreRoster::elect() {
  if (!options_.names_lead || missing_joins() > 0) {
    return false;
  }
  if (lead_ && !workers_[*lead_].has_said_bye && (workers_[*lead_].is_here() || is_missed(workers_[*lead_]))) {
    return false;
  }
  const bool may_be_claimed = !lead_ && std::any_of(workers_.begin(), workers_.end(),
                                                    [this](const StoreWorker& worker) { return is_missed(worker); });
  const auto first = std::find_if(workers_.begin(), workers_.end(),
                                  [](const StoreWorker& worker) { return worker.is_here() && !worker.has_said_bye; });
  if (may_be_claimed || first == workers_.end()) {
    return false;
  }
  const bool takes_over = lead_ && !workers_[*lead_].has_said_bye;
  lead_ = first->rank;
  return takes_over;
}

// Pulls.

const StoreWorker* StoreRoster::slowest() const {
  const bool are_expected = Clock::now() < expected_until_;
  const StoreWorker* found = nullptr;
  for (const StoreWorker& worker : workers_) {
    const bool counts = (worker.is_here() || are_expected) && !worker.is_at_end() && completed(worker) < state_->steps;
    found = counts && (found == nullptr || completed(worker) < completed(*found)) ? &worker : found;
  }
  return found;
}

const StoreWorker* StoreRoster::fastest() const {
  const StoreWorker* found = nullptr;
  for (const StoreWorker& worker : workers_) {
    found = worker.is_here() && (found == nullptr || completed(worker) > completed(*found)) ? &worker : found;
  }
  return found;
}

bool StoreRoster::may_answer(const StoreWorker& worker) const {
  if (!is_started_ || missing_joins() > 0) {
    return false;
  }
  switch (worker.pull->when) {
    case Pull::When::kNow:
      return true;
    case Pull::When::kStep: {
      const StoreWorker* const last = slowest();
      return wish_ != Ending::kNone || options_.mode == Mode::kAsync || last == nullptr ||
             worker.pull->completed <= completed(*last) + state_->max_staleness;
    }
    case Pull::When::kEnd: {
      const bool have_all_ended = std::all_of(workers_.begin(), workers_.end(), [this](const StoreWorker& other) {
        return other.is_at_end() || (!other.is_here() && !is_missed(other));
      });
      const bool waits_for_lead =
          options_.names_lead && lead_ && *lead_ != worker.rank && !workers_[*lead_].has_said_bye;
      return have_all_ended && !waits_for_lead;
    }
  }
  return false;
}

const StoreWorker* StoreRoster::awaited_by(const StoreWorker& waiting) const {
  const auto absent =
      std::find_if(workers_.begin(), workers_.end(), [](const StoreWorker& worker) { return !worker.has_joined; });
  if (absent != workers_.end()) {
    return &*absent;
  }
  if (!is_started_) {
    return &workers_.front();
  }
  if (waiting.pull->when == Pull::When::kStep) {
    return slowest();
  }
  const auto other = std::find_if(workers_.begin(), workers_.end(), [&](const StoreWorker& worker) {
    return worker.rank != waiting.rank && worker.is_here() && !worker.is_at_end();
  });
  return other == workers_.end() ? nullptr : &*other;
}

StoreRoster::Over StoreRoster::is_over() const {
  const auto now = Clock::now();
  bool has_any_said_bye = false;
  bool is_deserted = true;
  milliseconds patience = options_.rejoin;
  for (const StoreWorker& worker : workers_) {
    patience = std::max(patience, worker.patience);
  }
  for (const StoreWorker& worker : workers_) {
    if (worker.has_said_bye) {
      has_any_said_bye = true;
      continue;
    }
    if (worker.connection || is_missed(worker)) {
      return Over::kNo;
    }
    is_deserted = is_deserted && now - worker.gone_since >= patience;
  }
  return has_any_said_bye ? Over::kOrderly : is_deserted ? Over::kDeserted : Over::kNo;
}

void StoreRoster::look_for_slow_workers(const std::function<void(bool is_slow, const std::string& text)>& say) {
  const StoreWorker* const first = fastest();
  if (!is_started_ || first == nullptr) {
    return;
  }
  const auto now = Clock::now();
  const std::uint64_t limit = options_.mode == Mode::kBounded ? std::max(state_->max_staleness, 1U) : kSlowSteps;
  for (StoreWorker& worker : workers_) {
    const bool counts = worker.is_here() && !worker.is_at_end();
    if (!counts || completed(*first) < completed(worker) + limit) {
      if (worker.is_called_slow && counts) {
        say(false, fmt::format("{} has caught up", worker.name));
      }
      worker.slow_since.reset();
      worker.is_called_slow = false;
      continue;
    }
    worker.slow_since = worker.slow_since.value_or(now);
    const auto slow_for = now - *worker.slow_since;
    if (!worker.is_called_slow && slow_for >= kSlowFor) {
      worker.is_called_slow = true;
      say(true, fmt::format("{} is slow: {} steps behind {}, and at least {} for {:.1f} s", worker.name,
                            completed(*first) - completed(worker), first->name, limit,
                            std::chrono::duration<double>(slow_for).count()));
    }
  }
}

}  // namespace lockstep::server
