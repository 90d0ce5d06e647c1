// Which part of a dataset each row of each micro-batch holds: pure functions of (seed, step, micro-batch).
//
// Sample j covers tokens [j*T, j*T + T + 1): T inputs and, one further, T targets. There are n = (tokens - 1) / T of
// them. Rows are consumed in the global order k = (step * M + micro_batch) * B + row; epoch e = k / n visits the
// samples in the order of a permutation keyed by (seed, e), so each sample comes exactly once an epoch, whatever the
// number of ranks.
#pragma once

#include <cstdint>

namespace lockstep {

struct SamplerOptions {
  std::uint64_t tokens = 0;           // in the dataset
  std::int64_t sequence = 0;          // T
  std::int64_t micro_batches = 1;     // M, in a step over all ranks
  std::int64_t micro_batch_size = 1;  // B, rows
  std::uint64_t seed = 0;
};

class Sampler {
 public:
  // Throws Error(kUsage) when the dataset is shorter than one sample.
  explicit Sampler(const SamplerOptions& options);

  [[nodiscard]] std::uint64_t samples_per_epoch() const { return samples_; }
  // The sample in row `row` of micro-batch `micro_batch` of step `step`.
  [[nodiscard]] std::uint64_t sample(std::uint64_t step, std::int64_t micro_batch, std::int64_t row) const;
  [[nodiscard]] std::uint64_t epoch(std::uint64_t step) const;  // of the step's first row
  [[nodiscard]] std::uint64_t first_token(std::uint64_t sample) const {
    return sample * static_cast<std::uint64_t>(sequence_);
  }

 private:
  std::uint64_t samples_;
  std::int64_t sequence_;
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
