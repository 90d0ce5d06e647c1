#include "trainer/async_lead.h"

#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "trainer/device.h"
#include "trainer/evaluate.h"
#include "trainer/model/architecture.h"
#include "trainer/stopwatch.h"

namespace lockstep {

using control::Phase;

void make_run_folder(const Config& config, const Replica& replica) {
  check_run_folder(run_folder(config), checkpoint_bytes(replica));
  const std::filesystem::path folder = checkpoints_folder(config);
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  require(!error, "{} cannot be created: {}", folder.string(), error.message());
}

AsyncLead::AsyncLead(const Setup& setup, RunLock lock, TrainStep& train_step, Backend& backend,
                     control::Activity& activity, Log& log)
    : config_(setup.config),
      train_step_(train_step),
      activity_(activity),
      log_(log),
      lock_(std::move(lock)),
      writer_(train_step.layout(), checkpoint_options(setup.config, train_step, self_, backend, setup.tokenizer)),
      progress_(setup.progress),
      evaluated_(progress_.evaluation_pending ? -1 : setup.completed),
      saved_(setup.saved),
      looked_at_(setup.completed) {
  const Replica& replica = train_step.replica();
  sync_folder(run_folder(config_));
  sync_folder(config_.run.dir);
  clear_the_way(checkpoints_folder(config_), static_cast<std::uint64_t>(setup.updated), log_);
  if (!train_step.not_recorded().empty()) {
    log_.info("train: device.graph: no step is put into CUDA graphs: {}", train_step.not_recorded());
  }
  report_ = std::make_unique<TrainReport>(
      config_,
      TrainReport::Options{
          .rank = 0,
          .completed_steps = setup.completed,
          .evaluation_pending = progress_.evaluation_pending,
          .peak_flop_per_s = peak_flop_per_s(backend, replica.working_dtype(), config_.device.tf32) * setup.world,
          .flop_per_token = training_flop_per_token(replica.model().architecture(), replica.model().parameters(),
                                                    config_.data.sequence)},
      log_);
  log_.info("configuration:\n{}", to_yaml(config_));
}

AsyncLead::~AsyncLead() = default;

void AsyncLead::report(const StepMetrics& metrics, std::int64_t step_tokens) {
  StepMetrics line = metrics;
  line.checkpoint_ms = std::exchange(checkpoint_ms_, 0);
  report_->step(line, step_tokens);
}

bool AsyncLead::evaluation_due(std::int64_t completed) const {
  if (config_.data.valid.empty() || evaluated_ == completed) {
    return false;
  }
  const std::int64_t every = config_.evaluate.every_steps;
  return progress_.evaluation_pending || (every > 0 && completed > 0 && completed % every == 0) ||
         completed >= config_.train.steps || is_out_of_patience();
}

void AsyncLead::evaluate(std::int64_t completed, const std::function<bool()>& stop_requested) {
  evaluated_ = completed;
  progress_.evaluation_pending = true;
  EvaluationHooks hooks;
  hooks.progress = [&](std::uint64_t done, std::uint64_t) {
    activity_.enter(Phase::kEvaluate, completed, static_cast<std::int64_t>(done));
  };
  hooks.stop_requested = stop_requested;
  const std::optional<EvaluationResult> result = lockstep::evaluate(
      train_step_.replica(), train_step_.arena(), self_, validation_options(config_, train_step_.reference()), hooks);
  if (!result) {
    return;
  }
  progress_.evaluation_pending = false;
  validation_loss_ = result->loss;
  report_->evaluated({.step = completed,
                      .valid_loss = result->loss,
                      .perplexity = result->perplexity(),
                      .accuracy = result->accuracy(),
                      .tokens = result->tokens,
                      .preference = result->preference});
  progress_.note_validation(result->loss, config_.evaluate.min_delta);
}

bool AsyncLead::is_out_of_patience() const {
  return config_.evaluate.patience > 0 && progress_.without_improvement >= config_.evaluate.patience;
}

bool AsyncLead::save_due(std::int64_t completed) const {
  const std::int64_t every = config_.checkpoint.every_steps;
  return every > 0 && completed > 0 && completed % every == 0 && looked_at_ != completed;
}

void AsyncLead::save(std::int64_t completed, std::int64_t updated, std::uint64_t tokens) {
  looked_at_ = completed;
  if (saved_ == updated && save_failure_.empty()) {
    return;
  }
  const double begin_ms = now_ms();
  while (writer_.busy()) {
    activity_.enter(Phase::kSaving, completed);
    writer_.wait();
    look_after_save();
  }
  saved_ = updated;
  save_failure_.clear();
  save_begin_ms_ = begin_ms;
  activity_.enter(Phase::kSnapshot, completed);
  RunPosition position = run_position(config_, updated, tokens);
  position.validation_loss = validation_loss_;
  position.extra_json = to_json(progress_);
  writer_.begin(position, checkpoint_source(train_step_, self_));
  checkpoint_ms_ += now_ms() - begin_ms;
}

void AsyncLead::look_after_save() {
  const SaveReport mine = writer_.report();
  handle(writer_.advance(std::span(&mine, 1)));
}

void AsyncLead::handle(const std::optional<SaveOutcome>& outcome) {
  if (!outcome) {
    return;
  }
  if (outcome->published) {
    activity_.published(static_cast<std::int64_t>(outcome->step), (now_ms() - save_begin_ms_) * 1e-3);
    log_.info("train: saved {}", (checkpoints_folder(config_) / step_folder_name(outcome->step)).string());
  } else {
    save_failure_ = outcome->message;
  }
  if (!outcome->message.empty()) {
    log_.warning("checkpoint of step {}: {}", outcome->step, outcome->message);
  }
}

void AsyncLead::finish(std::int64_t completed) {
  while (writer_.busy()) {
    activity_.enter(Phase::kSaving, completed);
    writer_.wait();
    look_after_save();
  }
  report_->finish(static_cast<std::int64_t>(completed));
  if (!save_failure_.empty()) {
    fail(ErrorCode::kIo, "the last checkpoint, of step {}, was not saved: {}", saved_, save_failure_);
  }
}

}  // namespace lockstep
