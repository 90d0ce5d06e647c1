// The loss of a model on a dataset.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>

#include "comm/communicator.h"
#include "trainer/replica.h"

namespace lockstep {

struct EvaluationOptions {
  std::filesystem::path dataset;
  std::int64_t sequence = 0;
  std::int64_t batch_size = 1;    // rows
  std::uint64_t max_batches = 0;  // 0: every whole sample
};

struct EvaluationResult {
  double loss = 0;  // mean over the tokens
  std::int64_t tokens = 0;
  [[nodiscard]] double perplexity() const;
};

// Evaluates the dataset's first batches in its own order. Collective: the batches are spread over the ranks, and their
// sums are added in the batches' order, so the result has the same bits on any number of ranks. `progress` (may be
// empty) is called on rank 0 with the batches done by it and their number. Throws what reading the dataset throws.
[[nodiscard]] EvaluationResult evaluate(
    const Replica& replica, Arena& arena, Communicator& communicator, const EvaluationOptions& options,
    const std::function<void(std::uint64_t done, std::uint64_t total)>& progress = {});

}  // namespace lockstep
