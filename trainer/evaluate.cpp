#include "trainer/evaluate.h"

#include <cmath>
#include <vector>

#include "data/batch_loader.h"
#include "ops/tape.h"

namespace lockstep {

double EvaluationResult::perplexity() const { return std::exp(loss); }

EvaluationResult evaluate(const Replica& replica, Arena& arena, Communicator& communicator,
                          const EvaluationOptions& options,
                          const std::function<void(std::uint64_t, std::uint64_t)>& progress) {
  EvaluationBatches batches({options.dataset, options.sequence, options.batch_size, options.max_batches});
  const auto world = static_cast<std::uint64_t>(communicator.world_size());
  const auto rank = static_cast<std::uint64_t>(communicator.rank());
  const std::uint64_t per_rank = (batches.count() + world - 1) / world;
  const std::uint64_t begin = std::min(batches.count(), rank * per_rank);
  const std::uint64_t end = std::min(batches.count(), begin + per_rank);

  struct BatchSum {
    double loss = 0;
    std::int64_t tokens = 0;
  };
  std::vector<BatchSum> mine(per_rank);
  Tape tape(replica.backend(), arena, nullptr);
  for (std::uint64_t i = begin; i < end; ++i) {
    const TokenBatch& batch = batches.read(i);
    const Loss loss = replica.model().loss(
        tape, replica.weights(), {batch.inputs, batch.targets, options.batch_size, options.sequence}, {}, 1.0F);
    mine[i - begin] = {loss.sum, loss.count};
    if (progress && rank == 0) {
      progress(i - begin + 1, end - begin);
    }
  }

  std::vector<BatchSum> all(per_rank * world);
  communicator.all_gather(std::as_bytes(std::span(mine)), std::as_writable_bytes(std::span(all)));
  BatchSum total;
  for (const BatchSum& sum : all) {
    total.loss += sum.loss;
    total.tokens += sum.tokens;
  }
  return {total.loss / static_cast<double>(total.tokens), total.tokens};
}

}  // namespace lockstep
