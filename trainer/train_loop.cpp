#include "trainer/train_loop.h"

#include <cmath>
#include <utility>

#include "base/file.h"
#include "trainer/agreement.h"
#include "trainer/evaluate.h"
#include "trainer/gemm_rate.h"
#include "trainer/model/architecture.h"
#include "trainer/schedule.h"
#include "trainer/stopwatch.h"

namespace lockstep {
namespace {

MicroBatchRange micro_batches_of(const Config& config, const Communicator& communicator) {
  return micro_batches_of_rank(config.train.micro_batches, communicator.rank(), communicator.world_size());
}

GradReducer::Options reducer_options(const Config& config, const Communicator& communicator) {
  const MicroBatchRange mine = micro_batches_of(config, communicator);
  const std::int64_t world = communicator.world_size();
  return {.local_micro_batches = mine.end - mine.begin,
          .largest_micro_batches = (config.train.micro_batches + world - 1) / world,
          .bucket_bytes = static_cast<std::uint64_t>(config.comm.bucket_mib) << 20};
}

// What validation losses of one run must share to be compared.
std::string validation_of(const Config& config, const std::string& fingerprint) {
  return fingerprint.empty() ? "none" : fmt::format("{} batches of {}", config.evaluate.batches, fingerprint);
}

std::uint64_t checkpoint_bytes(const ParameterLayout& layout, DType working) {
  const std::uint64_t moments_and_master = (working == DType::kF32 ? 2 : 3) * sizeof(float);
  return layout.total() * (size_of(working) + moments_and_master);
}

}  // namespace

TrainLoop::TrainLoop(Setup setup, Communicator& communicator, Log& log)
    : config_(std::move(setup.config)),
      data_(std::move(setup.data)),
      validation_(validation_of(config_, setup.valid_fingerprint)),
      stop_requested_(std::move(setup.stop_requested)),
      communicator_(communicator),
      log_(log),
      micro_batches_(micro_batches_of(config_, communicator)),
      backend_(make_cpu_backend(config_.train.threads)),
      replica_(architecture_of(config_.model), config_.train.precision, *backend_),
      optimizer_(replica_.layout(), *backend_, config_.optimizer),
      reducer_(replica_.layout(), communicator, *backend_, reducer_options(config_, communicator)),
      tape_(*backend_, arena_, &reducer_),
      records_(communicator, static_cast<std::size_t>(reducer_options(config_, communicator).largest_micro_batches)),
      writer_(replica_.layout(), checkpoint_options(setup)) {
  progress_.data_fingerprint = data_fingerprint(data_);
  progress_.validation = validation_;
}

TrainLoop::~TrainLoop() = default;

CheckpointOptions TrainLoop::checkpoint_options(const Setup& setup) const {
  const bool narrow = replica_.working_dtype() == DType::kBF16;
  CheckpointOptions options;
  options.folder = checkpoints_folder(config_);
  options.rank = communicator_.rank();
  options.world = communicator_.world_size();
  options.model_dtype = replica_.working_dtype();
  options.range = balanced_range(replica_.layout(), options.rank, options.world, options.model_dtype);
  options.keep = config_.checkpoint.keep;
  options.keep_best = config_.checkpoint.keep_best;
  options.background = config_.checkpoint.background;
  if (options.rank == 0) {
    options.texts["config.json"] =
        to_hf_config(replica_.model().architecture(), {.end_of_text = data_.tokenizer.end_of_text,
                                                       .dropout = config_.model.dropout,
                                                       .dtype = narrow ? "bfloat16" : "float32"});
    options.texts["tokenizer.json"] = setup.tokenizer_json;
    options.texts["tokenizer_config.json"] = to_hf_tokenizer_config(setup.end_of_text, config_.model.context);
  }
  return options;
}

void TrainLoop::adopt(const CheckpointReader& checkpoint) {
  const ParameterLayout& layout = replica_.layout();
  const Manifest& manifest = checkpoint.manifest();
  checkpoint.load(layout, {{0, layout.total()}, replica_.master(), optimizer_.exp_avg(), optimizer_.exp_avg_sq()});
  completed_ = static_cast<std::int64_t>(manifest.position.step);
  saved_ = completed_;
  progress_ = run_progress_from_json(manifest.position.extra_json);
  if (progress_.validation != validation_) {
    if (progress_.best_validation_loss && config_.evaluate.patience > 0) {
      log_.info("train: validation differs from before ({}, was {}); evaluate.patience counts anew", validation_,
                progress_.validation);
    }
    progress_.validation = validation_;
    progress_.best_validation_loss.reset();
    progress_.without_improvement = 0;
  }
}

void TrainLoop::load(const CheckpointReader* checkpoint) {
  const ParameterLayout& layout = replica_.layout();
  if (checkpoint != nullptr) {
    adopt(*checkpoint);
    log_.info("train: continuing {} from step {}, digest {}", checkpoint->path().string(), completed_,
              checkpoint->manifest().digest.hex());
  } else if (!config_.model.from.empty()) {
    load_weights(config_.model.from, layout, replica_.master());
    log_.info("train: starting from the weights of {}", config_.model.from);
  } else {
    initialize(replica_.model().architecture(), replica_.model().parameters(), config_.run.seed, backend_->pool(),
               replica_.master());
  }
  replica_.refresh();
  loader_ = std::make_unique<BatchLoader>(BatchLoaderOptions{.dataset = config_.data.train,
                                                             .sequence = config_.data.sequence,
                                                             .micro_batches = config_.train.micro_batches,
                                                             .micro_batch_size = config_.train.micro_batch_size,
                                                             .seed = config_.run.seed,
                                                             .rank = communicator_.rank(),
                                                             .world = communicator_.world_size(),
                                                             .first_step = static_cast<std::uint64_t>(completed_),
                                                             .read_ahead_steps = config_.data.read_ahead,
                                                             .trace = config_.data.trace});
  if (communicator_.rank() == 0) {
    check_run_folder(run_folder(config_), checkpoint_bytes(layout, replica_.working_dtype()));
  }
}

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
  const double parameters = static_cast<double>(replica_.layout().parameters());
  report_ = std::make_unique<TrainReport>(
      config_,
      TrainReport::Options{
          .rank = communicator_.rank(),
          .completed_steps = completed_,
          .peak_flop_per_s = measure_gemm_rate(*backend_, replica_.working_dtype()) * communicator_.world_size(),
          .flop_per_token = training_flop_per_token(replica_.model().architecture(), parameters, config_.data.sequence),
          .tokens_per_step = tokens_per_step()},
      log_);
  log_.info("configuration:\n{}", to_yaml(config_));
  log_.info("train: {} parameters, {} rank{} x {} thread{} ({}), {} micro-batches of {} x {} tokens in {}",
            format_count(parameters), communicator_.world_size(), communicator_.world_size() == 1 ? "" : "s",
            config_.train.threads, config_.train.threads == 1 ? "" : "s", communicator_.description(),
            config_.train.micro_batches, config_.train.micro_batch_size, config_.data.sequence,
            name_of(config_.train.precision));
  if (!backend_->has_native(replica_.working_dtype())) {
    log_.info(
        "train: this processor has no {0} products; they are computed in fp32, and train.precision: fp32 is faster",
        name_of(config_.train.precision));
  }
}

TrainEnd TrainLoop::run() {
  if (finished()) {
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
    if (evaluation_due()) {
      evaluate_now();
    }
    if (save_due()) {
      save();
    }
    report_->step({.step = completed_,
                   .loss = result.loss,
                   .lr = result.learning_rate,
                   .grad_norm = result.grad_norm,
                   .step_ms = step_ms,
                   .data_ms = result.data_ms,
                   .comm_ms = reducer_.comm_ms(),
                   .comm_exposed_ms = reducer_.exposed_ms(),
                   .checkpoint_ms = std::exchange(checkpoint_ms_, 0),
                   .world = communicator_.world_size()});
  }
  finish_save();
  report_->finish(completed_);
  if (!save_failure_.empty()) {
    throw AgreedError(ErrorCode::kIo,
                      fmt::format("the last checkpoint, of step {}, was not saved: {}", saved_, save_failure_));
  }
  return finished() ? TrainEnd::kFinished : TrainEnd::kStopped;
}

// One step: gradients of all micro-batches, their sum, the losses, the update.
TrainLoop::StepResult TrainLoop::step() {
  StepResult result;
  validation_loss_.reset();
  losses_.clear();
  compute_gradients();
  result.data_ms = loader_->take_blocked_ms();
  reducer_.finish();

  const GatheredRecords& gathered = exchange(losses_);
  for (const double loss : gathered.micro_batch_losses) {
    result.loss += loss;
  }
  result.loss /= static_cast<double>(tokens_per_step());
  result.learning_rate = learning_rate(config_, completed_);
  result.grad_norm = std::nan("");
  if (!std::isfinite(result.loss)) {
    end_diverged(result);
  }
  result.grad_norm = optimizer_.step({.step = completed_ + 1,
                                      .learning_rate = result.learning_rate,
                                      .gradient = reducer_.gradient(),
                                      .master = replica_.master()});
  if (!std::isfinite(result.grad_norm)) {
    end_diverged(result);  // the optimizer has changed nothing
  }
  replica_.refresh();
  ++completed_;
  stop_ = gathered.stop_requested;
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
  throw AgreedError(ErrorCode::kDiverged,
                    fmt::format("step {}: the loss is {} and the gradient's norm {}; the weights of step {} are in {}. "
                                "A lower optimizer.lr, a longer schedule.warmup_steps or optimizer.clip_norm may help",
                                completed_ + 1, result.loss, result.grad_norm, completed_, where));
}

void TrainLoop::compute_gradients() {
  // The loss is a sum over the target tokens divided by their number in the whole global batch, so that the gradients
  // of micro-batches add up. In plain text every position is a target, so that number is known.
  const float scale = 1.0F / static_cast<float>(tokens_per_step());
  for (std::int64_t m = micro_batches_.begin; m < micro_batches_.end; ++m) {
    const TokenBatch& batch = loader_->next();
    const auto global_index = static_cast<std::uint64_t>(completed_ * config_.train.micro_batches + m);
    const Loss loss = replica_.model().loss(
        tape_, replica_.weights(), {batch.inputs, batch.targets, config_.train.micro_batch_size, config_.data.sequence},
        {static_cast<float>(config_.model.dropout), config_.run.seed, global_index}, scale);
    losses_.push_back(loss.sum);
    tape_.backward(loss.value);
    reducer_.end_micro_batch();
  }
}

const GatheredRecords& TrainLoop::exchange(std::span<const double> losses) {
  const GatheredRecords& gathered = records_.exchange({.stop_requested = stop_requested_ && stop_requested_(),
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

void TrainLoop::evaluate_now() {
  const EvaluationResult result = evaluate(replica_, arena_, communicator_,
                                           {.dataset = config_.data.valid,
                                            .sequence = config_.data.sequence,
                                            .batch_size = config_.train.micro_batch_size,
                                            .max_batches = static_cast<std::uint64_t>(config_.evaluate.batches)});
  validation_loss_ = result.loss;
  report_->evaluated(
      {.step = completed_, .valid_loss = result.loss, .perplexity = result.perplexity(), .tokens = result.tokens});
  const auto& best = progress_.best_validation_loss;
  const bool better = std::isfinite(result.loss) && (!best || result.loss < *best - config_.evaluate.min_delta);
  progress_.without_improvement = better ? 0 : progress_.without_improvement + 1;
  if (better) {
    progress_.best_validation_loss = result.loss;
  }
  if (out_of_patience() && completed_ < config_.train.steps) {
    log_.info("train: stopping early at step {}: {} evaluations without a better validation loss than {:.4f}",
              completed_, progress_.without_improvement, progress_.best_validation_loss.value_or(std::nan("")));
  }
}

bool TrainLoop::save_due() const {
  const std::int64_t every = config_.checkpoint.every_steps;
  return saved_ != completed_ && (finished() || stop_ || (every > 0 && completed_ % every == 0));
}

void TrainLoop::save() {
  const double begin_ms = now_ms();
  finish_save();
  const ElementRange range =
      balanced_range(replica_.layout(), communicator_.rank(), communicator_.world_size(), replica_.working_dtype());
  const auto part = [&](std::span<float> flat) { return flat.subspan(range.begin, range.size()); };
  CheckpointSource source;
  if (communicator_.rank() == 0) {
    source.weights = replica_.working();
  }
  if (replica_.working_dtype() == DType::kBF16) {
    source.master = part(replica_.master());
  }
  source.exp_avg = part(optimizer_.exp_avg());
  source.exp_avg_sq = part(optimizer_.exp_avg_sq());
  saved_ = completed_;
  save_failure_.clear();
  writer_.begin(position(), source);
  checkpoint_ms_ += now_ms() - begin_ms;
}

// Waits until no save is under way, on any rank.
void TrainLoop::finish_save() {
  while (writer_.busy()) {
    writer_.wait();
    exchange({});
  }
}

void TrainLoop::handle(const std::optional<SaveOutcome>& outcome) {
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
  RunPosition position;
  position.step = static_cast<std::uint64_t>(completed_);
  position.tokens = static_cast<std::uint64_t>(completed_ * tokens_per_step());
  position.samples = position.tokens / static_cast<std::uint64_t>(config_.data.sequence);
  position.seed = config_.run.seed;
  position.validation_loss = validation_loss_;
  position.config_text = to_yaml(config_);
  position.extra_json = to_json(progress_);
  return position;
}

std::int64_t TrainLoop::tokens_per_step() const {
  return std::int64_t{config_.train.micro_batches} * config_.train.micro_batch_size * config_.data.sequence;
}

}  // namespace lockstep
