// Micro-batches for training, read ahead by a thread, and batches for evaluation.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

#include "data/sampler.h"

namespace lockstep {

// inputs[B, L] and targets[B, L], row-major: targets[b, t] is the token after inputs[b, t], or -1 where nothing is
// trained. Of text, L is data.sequence. Conversations follow one another in one row, `lengths` has the inputs of each;
// inputs of 0 with targets of -1 behind the last one fill the row up to a multiple of 16, as one more length.
struct TokenBatch {
  std::uint64_t step = 0;
  std::int64_t micro_batch = 0;    // in the step, over all ranks
  std::int64_t row_tokens = 0;     // L
  std::int64_t target_tokens = 0;  // targets that are not -1
  std::int64_t pairs = 0;          // of a dataset of pairs: `lengths` begins with two for each, the better one first
  std::int64_t step_inputs = 0;    // inputs of the step over all ranks, without what fills rows up
  std::int64_t step_targets = 0;   // likewise target_tokens
  std::int64_t step_pairs = 0;     // likewise pairs
  std::vector<std::int32_t> inputs;
  std::vector<std::int32_t> targets;
  std::vector<std::int64_t> lengths;  // empty: all rows are whole sequences

  [[nodiscard]] std::int64_t rows() const { return static_cast<std::int64_t>(inputs.size()) / row_tokens; }  // B
};

struct BatchLoaderOptions {
  std::filesystem::path dataset;
  std::int64_t sequence = 0;
  bool packed = false;             // several conversations to a sample: data/samples.h
  std::int64_t micro_batches = 1;  // in a step, over all ranks
  std::int64_t micro_batch_size = 1;
  std::uint64_t seed = 0;
  int rank = 0;
  int world = 1;
  std::uint64_t first_step = 0;
  int read_ahead_steps = 4;
  // Empty: none. Otherwise "<trace>.rank<R>" gets a line for each sample handed out:
  //   step micro_batch sample xxh3-128-of-its-tokens (int32, little-endian; for text T + 1 of them)
  // written when the last micro-batch of the step is handed out, appended to what is there.
  std::filesystem::path trace;
};

// Yields this rank's micro-batches of step first_step, then of the next step, and so on without end.
//
// The constructor opens the dataset in a thread of its own, which reads up to `read_ahead_steps` steps ahead, the
// samples of a step in the order of their place in the files. next() is called from one thread.
class BatchLoader {
 public:
  explicit BatchLoader(BatchLoaderOptions options);
  ~BatchLoader();  // stops the thread
  BatchLoader(const BatchLoader&) = delete;
  BatchLoader& operator=(const BatchLoader&) = delete;

  // The next micro-batch; valid until the following call. Waits until it is read or interrupt() is called. Throws the
  // Error that stopped the thread (Dataset's, Sampler's), again in every later call, and Error(kTimeout) when
  // interrupted.
  [[nodiscard]] const TokenBatch& next();

  // Time that next() spent waiting since the last call of this: a step's data_ms.
  [[nodiscard]] double take_blocked_ms();

  // From any thread: next() gives up, now and in future.
  void interrupt();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Batches of a dataset in its own order, for evaluation: batch i has samples i*B to i*B + B - 1. Rows of text past the
// last sample have targets of -1 (and inputs of 0), so every sample is evaluated exactly once. Steps' totals are 0.
class EvaluationBatches {
 public:
  struct Options {
    std::filesystem::path dataset;
    std::int64_t sequence = 0;
    bool packed = false;
    std::int64_t micro_batch_size = 1;
    std::uint64_t max_batches = 0;  // 0: all
  };

  // Throws what Dataset::open and Sampler throw.
  explicit EvaluationBatches(const Options& options);
  ~EvaluationBatches();
  EvaluationBatches(const EvaluationBatches&) = delete;
  EvaluationBatches& operator=(const EvaluationBatches&) = delete;

  [[nodiscard]] std::uint64_t count() const;
  // index < count(). Valid until the next call; its step is 0 and its micro_batch is the index.
  [[nodiscard]] const TokenBatch& read(std::uint64_t index);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace lockstep
