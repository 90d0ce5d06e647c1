// How a worker of AsyncLoop comes to lead, what it then does between its steps, and how it stops leading.
#include <fmt/format.h>

#include <utility>
#include <vector>

#include "base/error.h"
#include "trainer/async_loop.h"
#include "trainer/checkpoint/retention.h"
#include "trainer/stopwatch.h"

namespace lockstep {

using server::Ending;
using When = server::Pull::When;

namespace {

std::string kept_text(const Config& config, std::int64_t updated) {
  return fmt::format("the servers have kept run {} after {} steps (lockstep serve --state)", config.run.name, updated);
}

}  // namespace

// What the servers have kept is to be gone on from.
void AsyncLoop::expect_kept_state_is_meant(std::int64_t updated) const {
  const std::string kept = kept_text(config_, updated);
  const std::filesystem::path run = run_folder(config_);
  require(
      resume_ == "auto",
      "--resume {}, but {}; remove their state folders to begin as asked, or leave out --resume to go on from there",
      resume_, kept);
  require(updated == 0 || std::filesystem::is_directory(run),
          "{}, but there is no {}; remove their state folders to begin anew, or set run.dir to where the run is", kept,
          run.string());
}

// Once nobody else writes there.
void AsyncLoop::expect_kept_state_is_newest(std::int64_t updated) const {
  const std::vector<CheckpointFolder> checkpoints = list_checkpoints(checkpoints_folder(config_));
  require(checkpoints.empty() || checkpoints.front().step <= static_cast<std::uint64_t>(updated),
          "{}, but {} is newer; remove their state folders to go on from it, or move the checkpoints after step {} "
          "elsewhere to go on from there",
          kept_text(config_, updated), checkpoints.empty() ? "" : checkpoints.front().path.string(), updated);
}

// Whether the run is this worker's to write to. One that takes over does not wait for the worker that led to be gone,
// which may stand still.
bool AsyncLoop::open_run(RunLock& lock, std::int64_t updated, std::chrono::seconds patience) {
  const std::filesystem::path run = run_folder(config_);
  if (is_successor_) {
    if (!waits_for_run_) {
      make_run_folder(config_, train_step_.replica());
    }
    const bool is_mine = lock.try_take(run, patience);
    if (!is_mine && !waits_for_run_) {
      log_.warning("train: the worker that led still holds {}; rank {} evaluates and saves once it lets go",
                   run.string(), store_.rank());
    }
    if (is_mine && waits_for_run_) {
      log_.warning("train: {} is free; rank {} evaluates and saves from now on", run.string(), store_.rank());
    }
    waits_for_run_ = !is_mine;
    return is_mine;
  }
  // Where the first cannot write there is no job for the others.
  try {
    if (is_kept_) {
      expect_kept_state_is_meant(updated);
    }
    make_run_folder(config_, train_step_.replica());
    lock.take(run);
    if (is_kept_) {
      expect_kept_state_is_newest(updated);
    }
  } catch (const Error& error) {
    end_for_all(error);
  }
  is_kept_ = false;
  return true;
}

bool AsyncLoop::take_the_lead(const Pulled& pulled, std::chrono::seconds patience) {
  if (pulled.is_led) {
    is_successor_ = true;
    is_kept_ = false;
  }
  if (!pulled.leads) {
    lead_.reset();
    return false;
  }
  RunLock lock;
  if (lead_ || !open_run(lock, updated(pulled), patience)) {
    return false;
  }
  // What the one that led saved until it let go is no later than this.
  const Pulled now = is_successor_ ? pull(When::kNow, kNothing) : pulled;
  if (!now.leads) {
    return true;
  }
  if (tokens_ == 0) {
    tokens_ = static_cast<std::uint64_t>(completed_ * train_step_.tokens_per_step());
  }
  lead_ = std::make_unique<AsyncLead>(
      AsyncLead::Setup{config_, tokenizer_, progress_, store_.world(), completed_, updated(now), loaded_},
      std::move(lock), train_step_, *backend_, activity_, log_);
  log_.info("train: {} parameters, {} rank{}, comm.mode {}; rank {} evaluates and saves",
            format_count(static_cast<double>(train_step_.layout().parameters())), store_.world(),
            store_.world() == 1 ? "" : "s", config_.comm.mode, store_.rank());
  if (opened_) {
    opened_(run_folder(config_));
  }
  return is_successor_;
}

void AsyncLoop::wish_to_stop_if_asked() {
  if (!has_wished_ && is_stop_requested()) {
    has_wished_ = true;
    store_.wish(Ending::kStopped);
  }
}

bool AsyncLoop::lead_between_steps() {
  const bool wishes_save = save_requested_ && save_requested_();
  const bool is_to_evaluate = lead_->evaluation_due(completed_);
  const bool is_to_save = lead_->save_due(completed_) || wishes_save;
  if (is_to_evaluate) {
    take_the_lead(pull(When::kNow, kWeights));  // those for a step look ahead
    if (!lead_) {
      return true;
    }
    lead_->evaluate(completed_, [this] { return is_stop_requested(); });
  }
  if (is_to_save) {
    const Pulled with_moments = pull(When::kNow, kEverything);
    take_the_lead(with_moments);
    if (!lead_) {
      return true;
    }
    lead_->save(completed_, updated(with_moments), tokens_);
  }
  step_begin_ms_ = now_ms();
  if (lead_->is_out_of_patience() && !has_wished_) {
    log_.info("train: stopping early at step {}: no better validation loss for a while (evaluate.patience)",
              completed_);
    has_wished_ = true;
    store_.wish(Ending::kFinished);
    return true;
  }
  return is_to_evaluate || is_to_save;
}

void AsyncLoop::end(const Pulled& last, Ending ending) {
  // Where this worker alone has come to the last step, the evaluation behind it is not this job's.
  const bool is_cut_short = ending == Ending::kStopped && completed_ >= config_.train.steps;
  if (!is_cut_short && lead_->evaluation_due(completed_)) {
    lead_->evaluate(completed_, [ending] { return ending == Ending::kStopped; });
  }
  lead_->save(completed_, updated(last), tokens_);
  lead_->finish(completed_);
  log_.info("train: gradients were {:.2f} steps behind on average, {:.2f} at most", last.stale_mean, last.stale_max);
  if (last.missing > 0) {
    log_.warning("train: {} steps of lost workers are missing", last.missing);
  }
}

}  // namespace lockstep
