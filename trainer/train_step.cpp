#include "trainer/train_step.h"

#include <cmath>

#include "trainer/model/architecture.h"

namespace lockstep {
namespace {

std::int64_t largest_share(const Config& config, int world) { return (config.train.micro_batches + world - 1) / world; }

}  // namespace

BatchLoaderOptions loader_options(const Config& config, const Communicator& communicator, std::uint64_t first_step) {
  BatchLoaderOptions options;
  options.dataset = config.data.train;
  options.sequence = config.data.sequence;
  options.micro_batches = config.train.micro_batches;
  options.micro_batch_size = config.train.micro_batch_size;
  options.seed = config.run.seed;
  options.rank = communicator.rank();
  options.world = communicator.world_size();
  options.first_step = first_step;
  options.read_ahead_steps = config.data.read_ahead;
  return options;
}

TrainStep::TrainStep(const Config& config, Communicator& communicator, Backend& backend)
    : config_(config),
      micro_batches_(micro_batches_of_rank(config.train.micro_batches, communicator.rank(), communicator.world_size())),
      world_(communicator.world_size()),
      replica_(architecture_of(config.model), config.train.precision, backend),
      optimizer_(replica_.layout(), backend, config.optimizer),
      reducer_(replica_.layout(), communicator, backend,
               {.local_micro_batches = micro_batches_.end - micro_batches_.begin,
                .largest_micro_batches = largest_share(config, world_),
                .bucket_bytes = static_cast<std::uint64_t>(config.comm.bucket_mib) << 20}),
      tape_(backend, arena_, &reducer_) {}

std::int64_t TrainStep::largest_micro_batches() const { return largest_share(config_, world_); }

std::int64_t TrainStep::tokens_per_step() const {
  return std::int64_t{config_.train.micro_batches} * config_.train.micro_batch_size * config_.data.sequence;
}

std::span<const double> TrainStep::compute_gradients(std::int64_t completed,
                                                     const std::function<const TokenBatch&()>& next) {
  losses_.clear();
  // The loss is a sum over the target tokens divided by their number in the whole global batch, so that the gradients
  // of micro-batches add up. In plain text every position is a target, so that number is known.
  const float scale = 1.0F / static_cast<float>(tokens_per_step());
  for (std::int64_t m = micro_batches_.begin; m < micro_batches_.end; ++m) {
    const TokenBatch& batch = next();
    const auto global_index = static_cast<std::uint64_t>(completed * config_.train.micro_batches + m);
    const Loss loss = replica_.model().loss(
        tape_, replica_.weights(), {batch.inputs, batch.targets, config_.train.micro_batch_size, config_.data.sequence},
        {static_cast<float>(config_.model.dropout), config_.run.seed, global_index}, scale);
    losses_.push_back(loss.sum);
    tape_.backward(loss.value);
    reducer_.end_micro_batch();
  }
  return losses_;
}

double TrainStep::update(std::int64_t completed, double learning_rate) {
  const double norm = optimizer_.step({.step = completed + 1,
                                       .learning_rate = learning_rate,
                                       .gradient = reducer_.gradient(),
                                       .master = replica_.master()});
  if (std::isfinite(norm)) {
    replica_.refresh();
  }
  return norm;
}

}  // namespace lockstep
