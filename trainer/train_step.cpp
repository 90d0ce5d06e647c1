#include "trainer/train_step.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "trainer/batch_rows.h"
#include "trainer/model/architecture.h"
#include "trainer/stopwatch.h"

namespace lockstep {
namespace {

// Of a rank's shard: the last one's way to the others is all that is not overlapped with computing.
constexpr std::uint64_t kSlices = 8;

bool has_shards(const Config& config, const Communicator& communicator) {
  return config.comm.zero == 1 && communicator.world_size() > 1;
}

// On the host, working weights lie where other ranks can read them.
Replica::Sharding sharding_of(const Config& config, Communicator& communicator, const Backend& backend) {
  if (!has_shards(config, communicator)) {
    return {};
  }
  std::function<Buffer(std::size_t)> allocate;
  if (backend.device().kind == DeviceKind::kCpu) {
    allocate = [&communicator](std::size_t size_bytes) { return communicator.allocate(size_bytes); };
  }
  return {.rank = communicator.rank(), .world = communicator.world_size(), .allocate = allocate};
}

std::vector<ElementRange> shards_of(const Replica& replica, const Config& config, const Communicator& communicator) {
  std::vector<ElementRange> shards;
  for (int rank = 0; has_shards(config, communicator) && rank < communicator.world_size(); ++rank) {
    shards.push_back(replica.shard(rank, communicator.world_size()));
  }
  return shards;
}

std::string why_not_recorded(const Config& config, DatasetKind kind, const Backend& backend) {
  if (!config.device.graph) {
    return "";
  }
  if (backend.device().kind != DeviceKind::kCuda) {
    return "a CPU has none";
  }
  if (kind != DatasetKind::kText) {
    return "conversations have batches of different shapes";
  }
  if (config.model.dropout > 0 || config.tune.dropout > 0 || config.train.embedding_noise > 0) {
    return "dropout and noise are others in each step";
  }
  return "";
}

std::int64_t largest_share(const Config& config, int world) { return (config.train.micro_batches + world - 1) / world; }

}  // namespace

BatchLoaderOptions loader_options(const Config& config, const Communicator& communicator, std::uint64_t first_step) {
  BatchLoaderOptions options;
  options.dataset = config.data.train;
  options.sequence = config.data.sequence;
  options.packed = config.data.packing;
  options.micro_batches = config.train.micro_batches;
  options.micro_batch_size = config.train.micro_batch_size;
  options.seed = config.run.seed;
  options.rank = communicator.rank();
  options.world = communicator.world_size();
  options.first_step = first_step;
  options.read_ahead_steps = config.data.read_ahead;
  return options;
}

TrainStep::TrainStep(const Config& config, Communicator& communicator, Backend& backend, DatasetKind kind)
    : config_(config),
      communicator_(communicator),
      backend_(backend),
      micro_batches_(micro_batches_of_rank(config.train.micro_batches, communicator.rank(), communicator.world_size())),
      world_(communicator.world_size()),
      arena_([&backend](std::size_t size_bytes) { return backend.allocate(size_bytes); }),
      replica_(architecture_of(config.model), config.train.precision, backend, config.tune,
               sharding_of(config, communicator, backend)),
      reference_(kind == DatasetKind::kPairs ? std::make_unique<ReferenceModel>(config, replica_, backend) : nullptr),
      shards_(shards_of(replica_, config, communicator)),
      optimizer_(replica_.layout(), backend, config.optimizer,
                 is_sharded() ? shards_[static_cast<std::size_t>(communicator.rank())]
                              : ElementRange{0, replica_.layout().total()}),
      reducer_(replica_.layout(), communicator, backend,
               {.local_micro_batches = micro_batches_.end - micro_batches_.begin,
                .largest_micro_batches = largest_share(config, world_),
                .bucket_bytes = static_cast<std::uint64_t>(config.comm.bucket_mib) << 20,
                .owned = shards_}),
      tape_(backend, arena_, &reducer_),
      loss_scaler_(config.train),
      kept_(loss_scaler_.is_on() ? static_cast<std::size_t>(micro_batches_.end - micro_batches_.begin) : 0),
      not_recorded_(why_not_recorded(config, kind, backend)),
      records_(config.device.graph && not_recorded_.empty()) {
  const std::size_t block_bytes = squares_blocks(replica_.layout().total()) * sizeof(double);
  if (!is_sharded()) {
    block_sums_ = Buffer::allocate(block_bytes);
    slices_.push_back({{0, replica_.layout().total()}});
    return;
  }
  block_sums_ = communicator.allocate(block_bytes);
  for (const ElementRange& shard : shards_) {
    block_ranges_.push_back({squares_blocks(shard.begin), squares_blocks(shard.end)});
  }
  for (std::uint64_t s = 0; s < kSlices; ++s) {
    std::vector<ElementRange>& slice = slices_.emplace_back();
    for (const ElementRange& shard : shards_) {
      const std::uint64_t length = shard.size() / kSlices / kSquaresBlock * kSquaresBlock;
      const bool is_last = s + 1 == kSlices;
      slice.push_back({shard.begin + s * length, is_last ? shard.end : shard.begin + (s + 1) * length});
    }
  }
  gathers_.reserve(kSlices);
}

std::int64_t TrainStep::largest_micro_batches() const { return largest_share(config_, world_); }

std::int64_t TrainStep::tokens_per_step() const {
  return std::int64_t{config_.train.micro_batches} * config_.train.micro_batch_size * config_.data.sequence;
}

std::span<const double> TrainStep::compute_gradients(std::int64_t completed,
                                                     const std::function<const TokenBatch&()>& next) {
  ++computed_steps_;
  auto kept = kept_.begin();
  compute_micro_batches(completed, [&]() -> const TokenBatch& { return kept_.empty() ? next() : *kept++ = next(); });
  return losses_;
}

void TrainStep::compute_micro_batches(std::int64_t completed, const std::function<const TokenBatch&()>& next) {
  losses_.clear();
  // After two steps all memory is there, and where it lies repeats from step to step.
  const bool may_record = records_ && computed_steps_ > 2;
  if (recorded_scale_ != loss_scaler_.scale()) {
    recorded_.clear();
    recorded_scale_ = loss_scaler_.scale();
  }
  for (std::int64_t m = micro_batches_.begin; m < micro_batches_.end; ++m) {
    const TokenBatch& batch = next();
    step_inputs_ = batch.step_inputs;
    step_targets_ = batch.step_targets;
    step_pairs_ = batch.step_pairs;
    const auto global_index = static_cast<std::uint64_t>(completed * config_.train.micro_batches + m);
    if (may_record && are_recorded_alike()) {
      run_recorded(static_cast<std::size_t>(m - micro_batches_.begin), batch);
      reducer_.end_micro_batch();
      continue;
    }
    compute_micro_batch(batch, {.probability = static_cast<float>(config_.model.dropout),
                                .seed = config_.run.seed,
                                .adapters = static_cast<float>(config_.tune.dropout),
                                .noise = static_cast<float>(config_.train.embedding_noise),
                                .micro_batch = global_index});
    reducer_.end_micro_batch();
  }
  for (const Loss& loss : pending_) {
    losses_.push_back(loss.sum());
  }
  pending_.clear();
}

// The loss is a sum over target tokens, or pairs, divided by their number in the whole global batch, so that the
// gradients of micro-batches add up, and multiplied by what fp16 needs.
void TrainStep::compute_micro_batch(const TokenBatch& batch, const Transformer::DropoutStream& dropout) {
  const float scale = loss_scaler_.scale() / static_cast<float>(step_weight());
  if (!reference_) {
    const Loss loss =
        replica_.model().loss(tape_, replica_.weights(), rows_of(batch), dropout, scale, config_.train.recompute);
    tape_.backward(loss.value);
    pending_.push_back(loss);
    return;
  }
  const std::vector<double> reference = reference_->sums(batch, arena_);
  PreferenceSums sums;
  const auto gradients = [&](std::span<const double> policy, std::span<float> of_each) {
    sums = preference_loss(config_.preference, batch, policy, reference, scale, of_each);
  };
  const Loss loss = replica_.model().sequence_loss(tape_, replica_.weights(), rows_of(batch), dropout, gradients,
                                                   config_.train.recompute);
  tape_.backward(loss.value);
  const auto values = sums.values();
  losses_.insert(losses_.end(), values.begin(), values.end());
}

bool TrainStep::are_recorded_alike() const {
  return recorded_.empty() || recorded_.front().step_targets == step_targets_;
}

void TrainStep::run_recorded(std::size_t place, const TokenBatch& batch) {
  if (place < recorded_.size()) {
    Recorded& recorded = recorded_[place];
    std::ranges::copy(batch.inputs, recorded.batch.inputs.begin());
    std::ranges::copy(batch.targets, recorded.batch.targets.begin());
    recorded.recording->run();
    reducer_.skip_micro_batch();
    pending_.push_back(recorded.loss);
    return;
  }
  Recorded recorded{batch, step_targets_, {}, nullptr};
  recorded.recording = backend_.record([&] { compute_micro_batch(recorded.batch, {}); });
  recorded.loss = pending_.back();
  if (recorded.recording != nullptr) {
    recorded_.push_back(std::move(recorded));  // the batch's memory stays where it is
  }
}

void TrainStep::stop_recording() {
  records_ = false;
  recorded_.clear();
}

double TrainStep::norm_of_sum() {
  const std::span<double> sums = block_sums_.as<double>(squares_blocks(replica_.layout().total()));
  if (!is_sharded()) {
    backend_.sums_of_squares(reducer_.gradient(), sums);
  } else {
    const auto rank = static_cast<std::size_t>(communicator_.rank());
    const ElementRange& shard = shards_[rank];
    const ElementRange& blocks = block_ranges_[rank];
    backend_.sums_of_squares(reducer_.gradient().subspan(shard.begin, shard.size()),
                             sums.subspan(blocks.begin, blocks.size()));
    const double begin_ms = now_ms();
    communicator_.all_gather_ranges(view_of(sums), block_ranges_).wait();
    gather_ms_ = gather_wait_ms_ = now_ms() - begin_ms;
  }
  return std::sqrt(std::accumulate(sums.begin(), sums.end(), 0.0));
}

double TrainStep::gradient_norm(std::int64_t completed, const Again& again) {
  double norm = norm_of_sum();
  while (!std::isfinite(norm) && loss_scaler_.lower()) {
    std::size_t micro_batch = 0;
    compute_micro_batches(completed, [&]() -> const TokenBatch& {
      if (again.computes) {
        again.computes(static_cast<std::int64_t>(micro_batch));
      }
      return kept_[micro_batch++];
    });
    finish_gradients(again.waits_for);
    norm = norm_of_sum();
  }
  gradient_scale_ = 1 / static_cast<double>(loss_scaler_.scale());
  if (std::isfinite(norm)) {
    loss_scaler_.count_step();
  }
  return norm * gradient_scale_;
}

void TrainStep::update(std::int64_t completed, double learning_rate, double norm) {
  double first_gather_ms = 0;
  const std::size_t own = is_sharded() ? static_cast<std::size_t>(communicator_.rank()) : 0;
  for (const std::vector<ElementRange>& slice : slices_) {
    const ElementRange& part = slice[own];
    optimizer_.update({.step = completed + 1,
                       .learning_rate = learning_rate,
                       .gradient_norm = norm,
                       .gradient_scale = gradient_scale_,
                       .part = part,
                       .gradient = reducer_.gradient().subspan(part.begin, part.size()),
                       .master = replica_.master_of(part)});
    replica_.refresh(part);
    if (is_sharded()) {
      first_gather_ms = gathers_.empty() ? now_ms() : first_gather_ms;
      gathers_.push_back(communicator_.all_gather_ranges(replica_.working(), slice));
    }
  }
  if (is_sharded()) {
    const double wait_ms = now_ms();
    for (Work& gather : gathers_) {
      gather.wait();
    }
    gathers_.clear();
    gather_ms_ += now_ms() - first_gather_ms;
    gather_wait_ms_ += now_ms() - wait_ms;
  }
}

}  // namespace lockstep
