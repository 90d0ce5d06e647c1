// The loss of a model on a dataset.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>

#include "comm/communicator.h"
#include "trainer/preference.h"
#include "trainer/replica.h"

namespace lockstep {

struct EvaluationOptions {
  std::filesystem::path dataset;
  std::int64_t sequence = 0;
  bool packed = false;            // conversations, several to a sample: data/samples.h
  std::int64_t batch_size = 1;    // samples
  std::uint64_t max_batches = 0;  // 0: every whole sample
  // Of pairs.
  PreferenceConfig preference = {};
  const ReferenceModel* reference = nullptr;  // null: the losses of all their targets
};

// Of a run's evaluations while it trains. `reference`: null but for pairs.
[[nodiscard]] EvaluationOptions validation_options(const Config& config, const ReferenceModel* reference);

struct EvaluationResult {
  double loss = 0;  // mean over the tokens, or over pairs
  std::int64_t tokens = 0;
  std::int64_t hits = 0;  // tokens that were the likeliest, the lowest id of several; 0 with a reference
  std::optional<PreferenceMetrics> preference = {};
  [[nodiscard]] double perplexity() const;
  [[nodiscard]] double accuracy() const;  // share of the tokens
};

struct EvaluationHooks {
  // Called after each batch with the rank's batches so far and their number. May be empty.
  std::function<void(std::uint64_t done, std::uint64_t total)> progress = {};
  // Polled before each batch when it is not empty, on every rank or on none; true on one rank ends the evaluation.
  std::function<bool()> stop_requested = {};
};

// Evaluates the dataset's first batches in its own order. Collective: the batches are spread over the ranks, and their
// sums are added in the batches' order, so the result has the same bits on any number of ranks. Nothing when
// hooks.stop_requested() ended it. Throws what reading the dataset throws.
[[nodiscard]] std::optional<EvaluationResult> evaluate(const Replica& replica, Arena& arena, Communicator& communicator,
                                                       const EvaluationOptions& options,
                                                       const EvaluationHooks& hooks = {});

}  // namespace lockstep
