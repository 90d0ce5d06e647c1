#include "trainer/train_loop.h"

#include <cmath>
#include <utility>

#include "base/file.h"
#include "base/hash.h"
#include "trainer/agreement.h"
#include "trainer/device.h"
#include "trainer/evaluate.h"
#include "trainer/first_weights.h"
#include "trainer/model/architecture.h"
#include "trainer/schedule.h"
#include "trainer/stopwatch.h"
#include "trainer/train_checkpoint.h"

namespace lockstep {

using control::Phase;

namespace {

// What validation losses of one run must share to be compared.
std::string validation_of(const Config& config, const std::string& fingerprint) {
  return fingerprint.empty() ? "none" : fmt::format("{} batches of {}", config.evaluate.batches, fingerprint);
}

}  // namespace

std::string overflow_note(std::int64_t step, const LossScaler& scaler) {
  return fmt::format("train: step {}: gradients overflow fp16; computed again with a loss scale of {}", step,
                     scaler.state().scale);
}

std::string_view advice_after_divergence(Precision precision) {
  return precision == Precision::kFp16
             ? "train.precision: bf16 or fp32, which have a larger range, a lower optimizer.lr, a longer "
               "schedule.warmup_steps or optimizer.clip_norm may help"
             : "A lower optimizer.lr, a longer schedule.warmup_steps or optimizer.clip_norm may help";
}

TrainLoop::TrainLoop(Setup setup, Communicator& communicator, control::Activity& activity, Log& log)
    : config_(std::move(setup.config)),
      data_(std::move(setup.data)),
      validation_(validation_of(config_, setup.valid_fingerprint)),
      stop_requested_(std::move(setup.stop_requested)),
      save_requested_(std::move(setup.save_requested)),
      communicator_(communicator),
      activity_(activity),
      log_(log),
      backend_(std::move(setup.backend)),
      train_step_(config_, communicator, *backend_, data_.kind),
      records_(communicator,
               static_cast<std::size_t>(train_step_.largest_micro_batches()) * train_step_.values_per_micro_batch()),
      writer_(train_step_.layout(),
              checkpoint_options(config_, train_step_, communicator, *backend_, setup.tokenizer)) {
  progress_.data_fingerprint = data_fingerprint(data_);
  progress_.validation = validation_;
}

TrainLoop::~TrainLoop() = default;

void TrainLoop::adopt(const CheckpointReader& checkpoint) {
  const ParameterLayout& layout = train_step_.layout();
  const Manifest& manifest = checkpoint.manifest();
  train_step_.replica().fill([&](std::span<float> weights) {
    checkpoint.load(layout, {.range = {0, layout.total()}, .master = weights, .exp_avg = {}, .exp_avg_sq = {}});
  });
  const Optimizer& optimizer = train_step_.optimizer();
  const auto load_moments = [&](std::span<float> exp_avg, std::span<float> exp_avg_sq) {
    checkpoint.load(layout, {.range = optimizer.owned(), .master = {}, .exp_avg = exp_avg, .exp_avg_sq = exp_avg_sq});
  };
  if (backend_->device().kind == DeviceKind::kCpu) {
    load_moments(optimizer.exp_avg(), optimizer.exp_avg_sq());
  } else {
    const std::size_t count = optimizer.owned().size();
    const Buffer buffer = Buffer::allocate(2 * count * sizeof(float));
    const std::span<float> both = buffer.as<float>(2 * count);
    load_moments(both.first(count), both.last(count));
    const auto upload = [&](std::span<float> from, std::span<float> to) {
      backend_->copy(view_of(from), {to.data(), to.size(), DType::kF32, backend_->device()});
    };
    upload(both.first(count), optimizer.exp_avg());
    upload(both.last(count), optimizer.exp_avg_sq());
  }
  completed_ = static_cast<std::int64_t>(manifest.position.step);
  tokens_ = manifest.position.tokens;
  saved_ = completed_;
  published_ = completed_;
  adopt_progress(run_progress_from_json(manifest.position.extra_json));
}

void TrainLoop::adopt(const RankState& state) {
  require(state.elements == train_step_.layout().total(), "train: the other workers' model has {} weights, expected {}",
          state.elements, train_step_.layout().total());
  train_step_.replica().fill([&](std::span<float> weights) { std::ranges::copy(state.weights(), weights.begin()); });
  const Optimizer& optimizer = train_step_.optimizer();
  const auto upload = [&](std::span<float> all, std::span<float> to) {
    const std::span<float> from = all.subspan(optimizer.owned().begin, optimizer.owned().size());
    backend_->copy(view_of(from), {to.data(), to.size(), DType::kF32, backend_->device()});
  };
  upload(state.exp_avg(), optimizer.exp_avg());
  upload(state.exp_avg_sq(), optimizer.exp_avg_sq());
  completed_ = state.completed;
  tokens_ = state.tokens;
  save_pending_ = state.save_pending;
  last_lines_ = state.last_lines;
  validation_loss_ = state.validation_loss;
  adopt_progress(state.progress);
}

std::optional<RankState> TrainLoop::state() const {
  if (train_step_.is_sharded()) {
    return {};
  }
  RankState state;
  state.completed = completed_;
  state.tokens = tokens_;
  state.progress = progress_;
  state.config_text = to_yaml(config_);
  state.last_lines = report_ ? report_->last_lines() : last_lines_;
  state.validation_loss = validation_loss_;
  state.save_pending = save_pending_ || published_ < saved_ || (completed_ > 0 && save_due());
  state.allocate(train_step_.layout().total());
  const auto download = [&](std::span<float> from, std::span<float> to) {
    backend_->copy({from.data(), from.size(), DType::kF32, backend_->device()}, view_of(to));
  };
  download(train_step_.replica().master(), state.weights());
  download(train_step_.optimizer().exp_avg(), state.exp_avg());
  download(train_step_.optimizer().exp_avg_sq(), state.exp_avg_sq());
  return state;
}

void TrainLoop::adopt_progress(const RunProgress& progress) {
  progress_ = progress;
  if (progress_.loss_scale) {
    train_step_.loss_scaler().restore(*progress_.loss_scale);
  }
  const bool had_best = progress_.best_validation_loss.has_value();
  if (progress_.measure_on(validation_) && had_best && config_.evaluate.patience > 0) {
    log_.info("train: validation differs from before ({}, was {}); evaluate.patience counts anew", validation_,
              progress.validation);
  }
}

void TrainLoop::load(const Start& start) {
  Replica& replica = train_step_.replica();
  const bool goes_on = start.checkpoint != nullptr || start.state != nullptr;
  if (goes_on) {
    start.checkpoint != nullptr ? adopt(*start.checkpoint) : adopt(*start.state);
    if (config_.tune.method != TuneMethod::kFull) {
      load_base_again(config_, replica, progress_.base_fingerprint);
    }
    if (start.checkpoint != nullptr) {
      log_.info("train: continuing {} from step {}, digest {}", start.checkpoint->path().string(), completed_,
                start.checkpoint->manifest().digest.hex());
    } else {
      log_.info("train: going on after step {}, from memory", completed_);
    }
  } else {
    replica.fill([&](std::span<float> weights) {
      progress_.base_fingerprint = write_first_weights(config_, train_step_, *backend_, weights);
      source_fingerprint_ = config_.model.from.empty() ? "" : hash_of(std::as_bytes(weights)).hex();
    });
    if (config_.tune.method != TuneMethod::kFull) {
      log_.info("train: tuning {} ({})", config_.model.from, name_of(config_.tune.method));
    } else if (!config_.model.from.empty()) {
      log_.info("train: starting from the weights of {}", config_.model.from);
    }
  }
  load_reference(config_, train_step_, goes_on, progress_.base_fingerprint);
  BatchLoaderOptions options = loader_options(config_, communicator_, static_cast<std::uint64_t>(completed_));
  options.trace = config_.data.trace;
  loader_ = std::make_unique<BatchLoader>(std::move(options));
  if (communicator_.rank() == 0) {
    check_run_folder(run_folder(config_), checkpoint_bytes(replica));
  }
}

std::string TrainLoop::source_fingerprint() const { return progress_.base_fingerprint + source_fingerprint_; }

void TrainLoop::open(RunLock& lock) {
  if (communicator_.rank() == 0) {
    const std::filesystem::path folder = checkpoints_folder(config_);
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    require(!error, "{} cannot be created: {}", folder.string(), error.message());
    lock.take(run_folder(config_));
    sync_folder(run_folder(config_));
    sync_folder(config_.run.dir);
    clear_the_way(folder, static_cast<std::uint64_t>(completed_), log_);
  }
  const Replica& replica = train_step_.replica();
  const double parameters = static_cast<double>(replica.layout().parameters());
  const double frozen = static_cast<double>(replica.frozen().parameters());
  report_ = std::make_unique<TrainReport>(
      config_,
      TrainReport::Options{.rank = communicator_.rank(),
                           .completed_steps = completed_,
                           .evaluation_pending = progress_.evaluation_pending,
                           .last_lines = last_lines_,
                           .peak_flop_per_s = peak_flop_per_s(*backend_, replica.working_dtype(), config_.device.tf32) *
                                              communicator_.world_size(),
                           .flop_per_token = training_flop_per_token(
                               replica.model().architecture(), replica.model().parameters(), config_.data.sequence)},
      log_);
  log_.info("configuration:\n{}", to_yaml(config_));
  const bool on_gpu = backend_->device().kind == DeviceKind::kCuda;
  log_.info("train: {} parameters, {} rank{} x {} ({}), {} micro-batches of {} x {} tokens in {}{}",
            frozen == 0 ? format_count(parameters)
                        : fmt::format("{} of {}", format_count(parameters), format_count(parameters + frozen)),
            communicator_.world_size(), communicator_.world_size() == 1 ? "" : "s",
            on_gpu ? name_of(backend_->device())
                   : fmt::format("{} thread{}", config_.train.threads, config_.train.threads == 1 ? "" : "s"),
            communicator_.description(), config_.train.micro_batches, config_.train.micro_batch_size,
            config_.data.sequence, name_of(config_.train.precision),
            on_gpu && config_.device.tf32 && replica.working_dtype() == DType::kF32 ? " with products in TF32" : "");
  if (const LossScaler& scaler = train_step_.loss_scaler(); scaler.is_on()) {
    log_.info("train: a loss scale of {}{}", scaler.state().scale, progress_.loss_scale ? ", as it was" : "");
  }
  if (!train_step_.not_recorded().empty()) {
    log_.info("train: device.graph: no step is put into CUDA graphs: {}", train_step_.not_recorded());
  }
  if (!backend_->has_native(replica.working_dtype())) {
    log_.info(
        "train: this processor has no {0} products; they are computed in fp32, and train.precision: fp32 is faster",
        name_of(config_.train.precision));
  }
}

// The step in progress, or the one that was just completed.
void TrainLoop::enter(Phase phase, std::int64_t part) {
  const bool in_step = phase == Phase::kData || phase == Phase::kGradients || phase == Phase::kReduce ||
                       phase == Phase::kExchange || phase == Phase::kUpdate;
  activity_.enter(phase, in_step ? completed_ + 1 : completed_, part);
}

TrainEnd TrainLoop::run() {
  activity_.begin_run(completed_, config_.train.steps);
  if (progress_.evaluation_pending) {
    evaluate_now();
    if (finished() && !stop_) {
      save();  // the last checkpoint shall know its validation loss
    }
  }
  if (save_pending_ && saved_ != completed_) {
    save();
  }
  if (finished() && !stop_) {
    if (completed_ >= config_.train.steps) {
      log_.info("train: all {} steps are done already", completed_);
    } else {
      log_.info("train: stopped early at step {} already; a larger evaluate.patience lets it go on", completed_);
    }
  }
  while (!finished() && !stop_) {
    const double begin_ms = now_ms();
    const StepResult result = step();
    const double step_ms = now_ms() - begin_ms;
    if (const std::string note = backend_->take_note(); !note.empty()) {
      log_.info("train: {}", note);
    }
    activity_.end_step(completed_, result.loss, static_cast<double>(train_step_.step_inputs()) / (step_ms * 1e-3));
    report_->step({.step = completed_,
                   .loss = result.loss,
                   .lr = result.learning_rate,
                   .grad_norm = result.grad_norm,
                   .tokens = tokens_,
                   .step_ms = step_ms,
                   .data_ms = result.data_ms,
                   .comm_ms = train_step_.comm_ms(),
                   .comm_exposed_ms = train_step_.exposed_ms(),
                   .checkpoint_ms = std::exchange(checkpoint_ms_, 0),
                   .world = communicator_.world_size(),
                   .loss_scale = result.loss_scale,
                   .preference = result.preference},
                  train_step_.step_inputs());
    if (evaluation_due()) {
      evaluate_now();
    }
    if (save_due()) {
      save();
    }
  }
  finish_save();
  report_->finish(completed_);
  if (!save_failure_.empty()) {
    throw AgreedError(ErrorCode::kIo,
                      fmt::format("the last checkpoint, of step {}, was not saved: {}", saved_, save_failure_));
  }
  return finished() && !progress_.evaluation_pending ? TrainEnd::kFinished : TrainEnd::kStopped;
}

// One step: gradients of all micro-batches, their sum, the losses, the update.
TrainLoop::StepResult TrainLoop::step() {
  StepResult result;
  std::int64_t micro_batch = 0;
  const std::span<const double> losses = train_step_.compute_gradients(completed_, [&]() -> const TokenBatch& {
    enter(Phase::kData, micro_batch);
    const TokenBatch& batch = loader_->next();
    enter(Phase::kGradients, micro_batch++);
    return batch;
  });
  result.data_ms = loader_->take_blocked_ms();
  const auto waits_for = [this](std::size_t bucket) { enter(Phase::kReduce, static_cast<std::int64_t>(bucket)); };
  train_step_.finish_gradients(waits_for);

  const GatheredRecords& gathered = exchange(losses);
  const PreferenceSums sums = sums_of(gathered.micro_batch_losses, train_step_.values_per_micro_batch());
  const auto weight = static_cast<double>(train_step_.step_weight());
  result.loss = sums.loss / weight;
  if (train_step_.reference() != nullptr) {
    result.preference = means_of(sums, weight);
  }
  result.learning_rate = learning_rate(config_, completed_);
  result.grad_norm = std::nan("");
  if (!std::isfinite(result.loss)) {
    end_diverged(result);
  }
  const LossScaler& scaler = train_step_.loss_scaler();
  const auto computes_again = [&](std::int64_t part) {
    if (part == 0) {
      log_.info("{}", overflow_note(completed_ + 1, scaler));
    }
    enter(Phase::kGradients, part);
  };
  result.grad_norm = train_step_.gradient_norm(completed_, {computes_again, waits_for});
  if (!std::isfinite(result.grad_norm)) {
    end_diverged(result);  // nothing was changed
  }
  enter(Phase::kUpdate);
  train_step_.update(completed_, result.learning_rate, result.grad_norm);
  if (scaler.is_on()) {
    result.loss_scale = 1 / train_step_.gradient_scale();
    progress_.loss_scale = scaler.state();
  }
  ++completed_;
  validation_loss_.reset();
  tokens_ += static_cast<std::uint64_t>(train_step_.step_inputs());
  stop_ = gathered.stop_requested;
  save_ = gathered.save_requested;
  return result;
}

// The weights are those of the last step that went well: they are saved before the run ends.
void TrainLoop::end_diverged(const StepResult& result) {
  if (saved_ != completed_ && completed_ > 0) {
    save();
  }
  finish_save();
  const std::string where =
      saved_ == completed_ && save_failure_.empty()
          ? (checkpoints_folder(config_) / step_folder_name(static_cast<std::uint64_t>(completed_))).string()
          : "no checkpoint";
  throw AgreedError(
      ErrorCode::kDiverged,
      fmt::format("step {}: the loss is {} and the gradient's norm {}; the weights of step {} are in {}. {}",
                  completed_ + 1, result.loss, result.grad_norm, completed_, where,
                  advice_after_divergence(config_.train.precision)));
}

const GatheredRecords& TrainLoop::exchange(std::span<const double> losses) {
  enter(Phase::kExchange);
  const GatheredRecords& gathered = records_.exchange({.stop_requested = stop_requested_ && stop_requested_(),
                                                       .save_requested = save_requested_ && save_requested_(),
                                                       .save_report = writer_.report(),
                                                       .micro_batch_losses = losses});
  handle(writer_.advance(gathered.save_reports));
  return gathered;
}

bool TrainLoop::finished() const { return completed_ >= config_.train.steps || out_of_patience(); }

bool TrainLoop::out_of_patience() const {
  return config_.evaluate.patience > 0 && progress_.without_improvement >= config_.evaluate.patience;
}

bool TrainLoop::evaluation_due() const {
  const std::int64_t every = config_.evaluate.every_steps;
  return !config_.data.valid.empty() && ((every > 0 && completed_ % every == 0) || finished());
}

// When the run is to stop, the evaluation is given up, and made up for when the run goes on.
void TrainLoop::evaluate_now() {
  progress_.evaluation_pending = true;
  if (stop_) {
    return;
  }
  EvaluationHooks hooks;
  hooks.progress = [this](std::uint64_t done, std::uint64_t) {
    enter(Phase::kEvaluate, static_cast<std::int64_t>(done));
  };
  hooks.stop_requested = [this] { return stop_requested_ && stop_requested_(); };
  const std::optional<EvaluationResult> evaluation =
      evaluate(train_step_.replica(), train_step_.arena(), communicator_,
               validation_options(config_, train_step_.reference()), hooks);
  if (!evaluation) {
    stop_ = true;
    return;
  }
  progress_.evaluation_pending = false;
  const EvaluationResult& result = *evaluation;
  validation_loss_ = result.loss;
  report_->evaluated({.step = completed_,
                      .valid_loss = result.loss,
                      .perplexity = result.perplexity(),
                      .accuracy = result.accuracy(),
                      .tokens = result.tokens,
                      .preference = result.preference});
  progress_.note_validation(result.loss, config_.evaluate.min_delta);
  if (out_of_patience() && completed_ < config_.train.steps) {
    log_.info("train: stopping early at step {}: {} evaluations without a better validation loss than {:.4f}",
              completed_, progress_.without_improvement, progress_.best_validation_loss.value_or(std::nan("")));
  }
}

bool TrainLoop::save_due() const {
  const std::int64_t every = config_.checkpoint.every_steps;
  return saved_ != completed_ && (finished() || stop_ || save_ || (every > 0 && completed_ % every == 0));
}

void TrainLoop::save() {
  const double begin_ms = now_ms();
  finish_save();
  saved_ = completed_;
  save_pending_ = false;
  save_failure_.clear();
  save_begin_ms_ = begin_ms;
  enter(Phase::kSnapshot);
  writer_.begin(position(), checkpoint_source(train_step_, communicator_));
  checkpoint_ms_ += now_ms() - begin_ms;
}

// Waits until no save is under way, on any rank.
void TrainLoop::finish_save() {
  while (writer_.busy()) {
    enter(Phase::kSaving);
    writer_.wait();
    exchange({});
  }
}

void TrainLoop::handle(const std::optional<SaveOutcome>& outcome) {
  if (outcome && outcome->published) {
    published_ = static_cast<std::int64_t>(outcome->step);
    activity_.published(static_cast<std::int64_t>(outcome->step), (now_ms() - save_begin_ms_) * 1e-3);
  }
  if (!outcome || communicator_.rank() != 0) {
    if (outcome && !outcome->published) {
      save_failure_ = outcome->message;
    }
    return;
  }
  if (outcome->published) {
    log_.info("train: saved {}", (checkpoints_folder(config_) / step_folder_name(outcome->step)).string());
  } else {
    save_failure_ = outcome->message;
  }
  if (!outcome->message.empty()) {
    log_.warning("checkpoint of step {}: {}", outcome->step, outcome->message);
  }
}

RunPosition TrainLoop::position() const {
  RunPosition position = run_position(config_, completed_, tokens_);
  position.validation_loss = validation_loss_;
  position.extra_json = to_json(progress_);
  return position;
}

}  // namespace lockstep
