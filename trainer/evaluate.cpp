#include "trainer/evaluate.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "data/batch_loader.h"
#include "ops/tape.h"
#include "trainer/batch_rows.h"

namespace lockstep {

namespace {

bool any_rank(Communicator& communicator, bool mine) {
  std::vector<std::byte> all(static_cast<std::size_t>(communicator.world_size()));
  const std::byte own{static_cast<unsigned char>(mine ? 1 : 0)};
  communicator.all_gather(std::span(&own, 1), all);
  return std::find(all.begin(), all.end(), std::byte{1}) != all.end();
}

struct BatchSum {
  PreferenceSums sums;  // its loss alone, but with a reference
  std::int64_t tokens = 0;
  std::int64_t hits = 0;
  std::int64_t pairs = 0;
};

BatchSum sum_of(const Loss& loss, const TokenBatch& batch, const EvaluationOptions& options, Arena& arena) {
  if (options.reference == nullptr) {
    return {{.loss = loss.sum()}, loss.count, loss.hits(batch.targets), batch.pairs};
  }
  const std::vector<double> policy = loss.sums(batch.lengths);
  const std::vector<double> reference = options.reference->sums(batch, arena);
  return {preference_loss(options.preference, batch, policy, reference, 1, {}), loss.count, 0, batch.pairs};
}

}  // namespace

double EvaluationResult::perplexity() const { return std::exp(loss); }
double EvaluationResult::accuracy() const { return static_cast<double>(hits) / static_cast<double>(tokens); }

EvaluationOptions validation_options(const Config& config, const ReferenceModel* reference) {
  return {.dataset = config.data.valid,
          .sequence = config.data.sequence,
          .packed = config.data.packing,
          .batch_size = config.train.micro_batch_size,
          .max_batches = static_cast<std::uint64_t>(config.evaluate.batches),
          .preference = config.preference,
          .reference = reference};
}

std::optional<EvaluationResult> evaluate(const Replica& replica, Arena& arena, Communicator& communicator,
                                         const EvaluationOptions& options, const EvaluationHooks& hooks) {
  EvaluationBatches batches(
      {options.dataset, options.sequence, options.packed, options.batch_size, options.max_batches});
  const auto world = static_cast<std::uint64_t>(communicator.world_size());
  const auto rank = static_cast<std::uint64_t>(communicator.rank());
  const std::uint64_t per_rank = (batches.count() + world - 1) / world;
  const std::uint64_t begin = std::min(batches.count(), rank * per_rank);
  const std::uint64_t end = std::min(batches.count(), begin + per_rank);

  std::vector<BatchSum> mine(per_rank);
  Tape tape(replica.backend(), arena, nullptr);
  for (std::uint64_t i = begin; i < begin + per_rank; ++i) {
    if (hooks.stop_requested && any_rank(communicator, hooks.stop_requested())) {
      return {};
    }
    if (i >= end) {
      continue;  // others have one more
    }
    const TokenBatch& batch = batches.read(i);
    Transformer::Rows rows = rows_of(batch);
    rows.with_likeliest = options.reference == nullptr;
    const Loss loss = replica.model().loss(tape, replica.weights(), rows, {}, 1.0F);
    mine[i - begin] = sum_of(loss, batch, options, arena);
    if (hooks.progress) {
      hooks.progress(i - begin + 1, end - begin);
    }
  }

  std::vector<BatchSum> all(per_rank * world);
  communicator.all_gather(std::as_bytes(std::span(mine)), std::as_writable_bytes(std::span(all)));
  BatchSum total;
  for (const BatchSum& sum : all) {
    total.sums += sum.sums;
    total.tokens += sum.tokens;
    total.hits += sum.hits;
    total.pairs += sum.pairs;
  }
  const auto weight = static_cast<double>(options.reference != nullptr ? total.pairs : total.tokens);
  EvaluationResult result{total.sums.loss / weight, total.tokens, total.hits};
  if (options.reference != nullptr) {
    result.preference = means_of(total.sums, weight);
  }
  return result;
}

}  // namespace lockstep
