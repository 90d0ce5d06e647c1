#include "data/sampler.h"

#include <cassert>

#include "base/error.h"
#include "data/permutation.h"

namespace lockstep {

Sampler::Sampler(const SamplerOptions& options)
    : samples_(options.samples),
      micro_batches_(options.micro_batches),
      micro_batch_size_(options.micro_batch_size),
      seed_(options.seed) {
  require(samples_ >= 1 && micro_batches_ >= 1 && micro_batch_size_ >= 1,
          "data: samples {}, micro_batches {} and micro_batch_size {} must be at least 1", samples_, micro_batches_,
          micro_batch_size_);
}

std::uint64_t Sampler::sample(std::uint64_t step, std::int64_t micro_batch, std::int64_t row) const {
  assert(micro_batch >= 0 && micro_batch < micro_batches_ && row >= 0 && row < micro_batch_size_);
  const std::uint64_t k =
      (step * static_cast<std::uint64_t>(micro_batches_) + static_cast<std::uint64_t>(micro_batch)) *
          static_cast<std::uint64_t>(micro_batch_size_) +
      static_cast<std::uint64_t>(row);
  const Permutation order(samples_, random_key(seed_, RandomUse::kSampleOrder, k / samples_));
  return order(k % samples_);
}

std::uint64_t Sampler::epoch(std::uint64_t step) const {
  return step * static_cast<std::uint64_t>(micro_batches_) * static_cast<std::uint64_t>(micro_batch_size_) / samples_;
}

MicroBatchRange micro_batches_of_rank(std::int64_t micro_batches, int rank, int world) {
  assert(rank >= 0 && rank < world);
  return {micro_batches * rank / world, micro_batches * (rank + 1) / world};
}

}  // namespace lockstep
