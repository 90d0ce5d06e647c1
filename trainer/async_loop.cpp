#include "trainer/async_loop.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "trainer/async_update.h"
#include "trainer/first_weights.h"
#include "trainer/model/parameters.h"
#include "trainer/schedule.h"
#include "trainer/stopwatch.h"

namespace lockstep {

using control::Phase;
using server::Ending;
using When = server::Pull::When;

namespace {

RunProgress first_progress(const TrainLoop::Setup& setup) {
  RunProgress progress;
  progress.data_fingerprint = data_fingerprint(setup.data);
  progress.validation = setup.valid_fingerprint.empty()
                            ? "none"
                            : fmt::format("{} batches of {}", setup.config.evaluate.batches, setup.valid_fingerprint);
  return progress;
}

}  // namespace

AsyncLoop::AsyncLoop(TrainLoop::Setup setup, Communicator& share, server::StoreClient& store,
                     control::Activity& activity, Log& log)
    : config_(setup.config),
      tokenizer_(std::move(setup.tokenizer)),
      stop_requested_(std::move(setup.stop_requested)),
      save_requested_(std::move(setup.save_requested)),
      share_(share),
      store_(store),
      activity_(activity),
      log_(log),
      backend_(std::move(setup.backend)),
      train_step_(config_, share, *backend_, setup.data.kind),
      progress_(first_progress(setup)) {}

// Memory.

AsyncLoop::Arrays AsyncLoop::arrays(std::uint32_t count) {
  const std::uint64_t total = train_step_.layout().total();
  if (backend_->device().kind == DeviceKind::kCpu) {
    const Optimizer& optimizer = train_step_.optimizer();
    const std::span<float> weights = train_step_.replica().master();
    return count == kEverything ? Arrays{weights, optimizer.exp_avg(), optimizer.exp_avg_sq()} : Arrays{weights};
  }
  if (host_.size_bytes() < count * total * sizeof(float)) {
    Buffer larger = Buffer::allocate(count * total * sizeof(float));
    std::copy_n(host_.data(), host_.size_bytes(), larger.data());
    host_ = std::move(larger);
  }
  const std::span<float> all = host_.as<float>(count * total);
  return count == kEverything ? Arrays{all.first(total), all.subspan(total, total), all.last(total)} : Arrays{all};
}

// Brings what was written into arrays() to where kernels read it.
void AsyncLoop::upload(std::uint32_t count) {
  Replica& replica = train_step_.replica();
  if (backend_->device().kind != DeviceKind::kCpu) {
    const Arrays from = arrays(count);
    const auto copy = [&](std::span<float> values, std::span<float> to) {
      backend_->copy(view_of(values), {to.data(), to.size(), DType::kF32, backend_->device()});
    };
    copy(from.weights, replica.master());
    if (count == kEverything) {
      copy(from.exp_avg, train_step_.optimizer().exp_avg());
      copy(from.exp_avg_sq, train_step_.optimizer().exp_avg_sq());
    }
    backend_->synchronize();
  }
  replica.refresh();
}

// Beginning.

void AsyncLoop::begin(const CheckpointReader* checkpoint, const std::string& resume) {
  resume_ = resume;
  const ParameterLayout& layout = train_step_.layout();
  if (config_.tune.method != TuneMethod::kFull) {  // every worker needs what is not trained
    progress_.base_fingerprint = write_first_weights(config_, train_step_, *backend_, arrays(kWeights).weights);
  }
  load_reference(config_, train_step_, false, progress_.base_fingerprint);
  if (checkpoint != nullptr) {
    const std::string began = run_progress_from_json(checkpoint->manifest().position.extra_json).base_fingerprint;
    require(began == progress_.base_fingerprint,
            "{} (model.from) is not the model that this run began with: its fingerprint is {}, expected {}",
            config_.model.from, progress_.base_fingerprint, began);
  }
  server::Open open;
  open.elements = layout.total();
  open.steps = static_cast<std::uint64_t>(config_.train.steps);
  open.max_staleness =
      store_.mode() == server::Mode::kBounded ? static_cast<std::uint32_t>(config_.comm.max_staleness) : 0;
  open.description =
      describe_update(config_, layout, store_.world(), progress_.data_fingerprint, progress_.base_fingerprint);
  const server::StoreClient::Position position = store_.open(std::move(open));
  completed_ = static_cast<std::int64_t>(position.completed);
  is_kept_ = position.is_kept && position.is_initialized;
  is_successor_ = position.is_initialized && !position.is_kept;
  if (!position.is_initialized && store_.rank() == 0) {
    if (position.is_kept) {
      end_for_all(Error(ErrorCode::kUsage,
                        "some of the servers have kept this run (lockstep serve --state) and others hold nothing; "
                        "remove the state folders of all to go on from the newest checkpoint"));
    }
    load(checkpoint);
    const Arrays state = arrays(kEverything);
    store_.start(static_cast<std::uint64_t>(completed_), {state.weights, state.exp_avg, state.exp_avg_sq});
  }
  if (position.is_initialized) {
    log_.info("train: the servers hold the weights, after {} steps of this rank", completed_);
  }
}

void AsyncLoop::load(const CheckpointReader* checkpoint) {
  const ParameterLayout& layout = train_step_.layout();
  const Arrays state = arrays(kEverything);
  if (checkpoint != nullptr) {
    const RunPosition& position = checkpoint->manifest().position;
    checkpoint->load(layout, {.range = {0, layout.total()},
                              .master = state.weights,
                              .exp_avg = state.exp_avg,
                              .exp_avg_sq = state.exp_avg_sq});
    completed_ = static_cast<std::int64_t>(position.step);
    tokens_ = position.tokens;
    loaded_ = completed_;
    const std::string validation = progress_.validation;
    progress_ = run_progress_from_json(position.extra_json);
    progress_.measure_on(validation);
    progress_.loss_scale.reset();  // each worker has one of its own
    log_.info("train: continuing {} from step {}, digest {}", checkpoint->path().string(), completed_,
              checkpoint->manifest().digest.hex());
  } else if (config_.tune.method != TuneMethod::kFull) {
    log_.info("train: tuning {} ({})", config_.model.from, name_of(config_.tune.method));
  } else {
    (void)write_first_weights(config_, train_step_, *backend_, state.weights);
    if (!config_.model.from.empty()) {
      log_.info("train: starting from the weights of {}", config_.model.from);
    }
  }
}

// Steps.

AsyncLoop::Pulled AsyncLoop::pull(When when, std::uint32_t count) {
  activity_.enter(Phase::kReduce, completed_ + 1);
  const double begin_ms = now_ms();
  const Pulled pulled =
      store_.pull({.completed = static_cast<std::uint64_t>(completed_), .arrays = count, .when = when},
                  count == kNothing ? Arrays{} : arrays(count), [this] {
                    wish_to_stop_if_asked();
                    if (!store_.leads()) {
                      lead_.reset();  // another worker does, and waits for the run
                    }
                  });
  if (count != kNothing && (when != When::kStep || pulled.ending == Ending::kNone)) {
    upload(count);
  }
  pull_ms_ = now_ms() - begin_ms;
  return pulled;
}

std::int64_t AsyncLoop::updated(const Pulled& pulled) const {
  return static_cast<std::int64_t>(pulled.version) / store_.world();
}

TrainEnd AsyncLoop::run(const std::function<void(const std::filesystem::path& run)>& opened) {
  opened_ = opened;
  activity_.begin_run(completed_, config_.train.steps);
  Ending ending = Ending::kNone;
  step_begin_ms_ = now_ms();
  while (ending == Ending::kNone && completed_ < config_.train.steps) {
    wish_to_stop_if_asked();
    const Pulled pulled = pull(When::kStep, kWeights);
    report_step();
    const bool has_pulled = take_the_lead(pulled);
    ending = pulled.ending;
    const bool is_to_pull_again = ending == Ending::kNone && ((lead_ && lead_between_steps()) || has_pulled);
    if (ending == Ending::kNone && !is_to_pull_again) {
      step();
    }
  }
  Pulled last = pull(When::kEnd, lead_ ? kEverything : kNothing);
  report_step();
  if (last.leads && !lead_) {
    take_the_lead(last, std::chrono::seconds(config_.comm.timeout_s));  // the one that did is gone
    last = pull(When::kEnd, lead_ ? kEverything : kNothing);
  }
  ending = std::max(ending, last.ending);  // somebody may have wished while this worker waited for the others
  if (ending == Ending::kStopped && updated(last) >= config_.train.steps) {
    ending = Ending::kNone;  // too late to leave a step out
  }
  if (last.leads && !lead_) {
    end_for_all(Error(ErrorCode::kPeerLost,
                      fmt::format("the worker that led is lost, but still holds {} (does it stand still?): what was "
                                  "trained since the newest checkpoint there cannot be saved",
                                  run_folder(config_).string())));
  }
  if (last.leads) {
    end(last, ending);
  }
  store_.close();
  return ending == Ending::kStopped ? TrainEnd::kStopped : TrainEnd::kFinished;
}

void AsyncLoop::step() {
  if (!loader_) {
    BatchLoaderOptions options = loader_options(config_, share_, static_cast<std::uint64_t>(completed_));
    options.trace = config_.data.trace;
    loader_ = std::make_unique<BatchLoader>(std::move(options));
  }
  std::int64_t weight = 0;  // of this share: targets, or pairs
  std::int64_t part = 0;
  const std::span<const double> losses = train_step_.compute_gradients(completed_, [&]() -> const TokenBatch& {
    activity_.enter(Phase::kData, completed_ + 1);
    const TokenBatch& batch = loader_->next();
    weight += train_step_.reference() != nullptr ? batch.pairs : batch.target_tokens;
    activity_.enter(Phase::kGradients, completed_ + 1, part++);
    return batch;
  });
  const PreferenceSums sums = sums_of(losses, train_step_.values_per_micro_batch());
  const double loss = sums.loss / static_cast<double>(weight);
  train_step_.finish_gradients();
  const double norm =
      train_step_.gradient_norm(completed_, {.computes = [this](std::int64_t micro_batch) {
                                  if (micro_batch == 0) {
                                    log_.info("{}", overflow_note(completed_ + 1, train_step_.loss_scaler()));
                                  }
                                  activity_.enter(Phase::kGradients, completed_ + 1, micro_batch);
                                }});
  if (!std::isfinite(loss) || !std::isfinite(norm)) {
    end_diverged(loss, norm);
  }
  std::span<const float> gradient = train_step_.reducer().gradient();
  if (backend_->device().kind != DeviceKind::kCpu) {
    if (gradient_.size_bytes() == 0) {
      gradient_ = Buffer::allocate(gradient.size_bytes());
    }
    const std::span<float> copy = gradient_.as<float>(gradient.size());
    backend_->copy({const_cast<float*>(gradient.data()), gradient.size(), DType::kF32, backend_->device()},
                   view_of(copy));
    backend_->synchronize();
    gradient = copy;
  }
  const double scale = push_scale(config_.optimizer, norm, store_.world()) * train_step_.gradient_scale();
  store_.push(static_cast<std::uint64_t>(completed_), static_cast<float>(scale), gradient);
  const double lr = learning_rate(config_, completed_);
  ++completed_;
  tokens_ += static_cast<std::uint64_t>(train_step_.step_inputs());
  step_ = StepMetrics{.step = completed_,
                      .loss = loss,
                      .lr = lr,
                      .grad_norm = norm * store_.world(),
                      .tokens = tokens_,
                      .data_ms = loader_->take_blocked_ms(),
                      .world = store_.world()};
  if (train_step_.loss_scaler().is_on()) {
    step_->loss_scale = 1 / train_step_.gradient_scale();
  }
  if (train_step_.reference() != nullptr) {
    step_->preference = means_of(sums, static_cast<double>(weight));
  }
}

// Once the next weights are here, and with them the answer to the gradient.
void AsyncLoop::report_step() {
  if (!step_) {
    return;
  }
  const double now = now_ms();
  step_->step_ms = now - std::exchange(step_begin_ms_, now);
  step_->comm_ms = step_->comm_exposed_ms = pull_ms_;  // the gradient's way there, and the weights' way back
  step_->staleness = store_.last_staleness();
  activity_.end_step(completed_, step_->loss, static_cast<double>(train_step_.step_inputs()) / (step_->step_ms * 1e-3));
  if (lead_) {
    lead_->report(*step_, train_step_.step_inputs());
    lead_->look_after_save();
  }
  step_.reset();
}

void AsyncLoop::end_diverged(double loss, double norm) {
  const Error error(
      ErrorCode::kDiverged,
      fmt::format("rank {}, step {}: the loss is {} and the gradient's norm {}; the job goes on from its "
                  "newest checkpoint. {}",
                  store_.rank(), completed_ + 1, loss, norm, advice_after_divergence(config_.train.precision)));
  end_for_all(error);
}

void AsyncLoop::end_for_all(const Error& error) {
  store_.fail(error);
  throw Error(error);
}

}  // namespace lockstep
