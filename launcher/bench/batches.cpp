#include "launcher/bench/batches.h"

#include <cstddef>
#include <cstdint>

#include "base/random.h"
#include "trainer/train_step.h"

namespace lockstep {
namespace {

TokenBatch random_batch(const Config& config) {
  const auto tokens =
      static_cast<std::size_t>(config.train.micro_batch_size) * static_cast<std::size_t>(config.data.sequence);
  TokenBatch batch;
  batch.row_tokens = config.data.sequence;
  batch.target_tokens = static_cast<std::int64_t>(tokens);
  batch.step_inputs = batch.step_targets = batch.target_tokens * config.train.micro_batches;
  const auto vocabulary = static_cast<std::uint64_t>(config.model.vocab);
  for (std::size_t i = 0; i < tokens; ++i) {
    batch.inputs.push_back(static_cast<std::int32_t>(mix64(2 * i) % vocabulary));
    batch.targets.push_back(static_cast<std::int32_t>(mix64(2 * i + 1) % vocabulary));
  }
  return batch;
}

}  // namespace

Batches::Batches(const BenchModel& model, const Communicator& communicator) {
  if (model.has_data) {
    loader_ = std::make_unique<BatchLoader>(loader_options(model.config, communicator, 0));
  } else {
    batch_ = random_batch(model.config);
  }
}

}  // namespace lockstep
