// Which part of a dataset each row of each micro-batch holds: pure functions of (seed, step, micro-batch).
//
// Of n samples (data/samples.h), rows are consumed in the global order k = (step * M + micro_batch) * B + row; epoch e
// = k / n visits the samples in the order of a permutation keyed by (seed, e), so each sample comes exactly once an
// epoch, whatever the number of ranks.
#pragma once

#include <cstdint>

namespace lockstep {

struct SamplerOptions {
  std::uint64_t samples = 0;          // n, in the dataset
  std::int64_t micro_batches = 1;     // M, in a step over all ranks
  std::int64_t micro_batch_size = 1;  // B, rows
  std::uint64_t seed = 0;
};

class Sampler {
 public:
  // Throws Error(kUsage) for sizes that are not positive.
  explicit Sampler(const SamplerOptions& options);

  [[nodiscard]] std::uint64_t samples_per_epoch() const { return samples_; }
  // The sample in row `row` of micro-batch `micro_batch` of step `step`.
  [[nodiscard]] std::uint64_t sample(std::uint64_t step, std::int64_t micro_batch, std::int64_t row) const;
  [[nodiscard]] std::uint64_t epoch(std::uint64_t step) const;  // of the step's first row

 private:
  std::uint64_t samples_;
  std::int64_t micro_batches_;
  std::int64_t micro_batch_size_;
  std::uint64_t seed_;
};

// The micro-batches of one rank: [begin, end) of M, contiguous, in rank order.
struct MicroBatchRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};
[[nodiscard]] MicroBatchRange micro_batches_of_rank(std::int64_t micro_batches, int rank, int world);

}  // namespace lockstep
