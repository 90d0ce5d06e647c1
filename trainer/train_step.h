// The arithmetic of a training step on one rank: the gradients of its micro-batches, their sum over all ranks, the
// update of the weights. Where batches come from and what happens between steps is the caller's.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "data/batch_loader.h"
#include "data/dataset.h"
#include "data/sampler.h"
#include "ops/arena.h"
#include "ops/backend.h"
#include "ops/tape.h"
#include "trainer/config.h"
#include "trainer/grad_reducer.h"
#include "trainer/loss_scaler.h"
#include "trainer/optimizer.h"
#include "trainer/preference.h"
#include "trainer/replica.h"

namespace lockstep {

class TrainStep {
 public:
  // Collective: allocates everything that a step needs. `config` is resolved; `kind` is that of its data. All arguments
  // outlive it.
  TrainStep(const Config& config, Communicator& communicator, Backend& backend, DatasetKind kind = DatasetKind::kText);

  [[nodiscard]] Replica& replica() { return replica_; }
  [[nodiscard]] const Replica& replica() const { return replica_; }
  [[nodiscard]] const ParameterLayout& layout() const { return replica_.layout(); }
  [[nodiscard]] const Optimizer& optimizer() const { return optimizer_; }
  [[nodiscard]] Arena& arena() { return arena_; }
  // Of pairs; otherwise null.
  [[nodiscard]] ReferenceModel* reference() { return reference_.get(); }
  // The gradient of the reducer is what the loss scale makes of it: see gradient_scale().
  [[nodiscard]] const GradReducer& reducer() const { return reducer_; }
  [[nodiscard]] LossScaler& loss_scaler() { return loss_scaler_; }
  // Whether each rank updates a shard of the weights (comm.zero: 1).
  [[nodiscard]] bool is_sharded() const { return !shards_.empty(); }
  // Of the last step: how long gradients and weights were on their way between ranks, and the part of it in which this
  // rank did nothing but wait for them.
  [[nodiscard]] double comm_ms() const { return reducer_.comm_ms() + gather_ms_; }
  [[nodiscard]] double exposed_ms() const { return reducer_.exposed_ms() + gather_wait_ms_; }
  // The most micro-batches that any rank has in a step.
  [[nodiscard]] std::int64_t largest_micro_batches() const;
  // Of a step of text.
  [[nodiscard]] std::int64_t tokens_per_step() const;
  // Of the last step, over all ranks.
  [[nodiscard]] std::int64_t step_inputs() const { return step_inputs_; }
  // What its loss is a mean over: targets, or pairs.
  [[nodiscard]] std::int64_t step_weight() const { return reference_ ? step_pairs_ : step_targets_; }
  // Why a GPU's kernels are not put into graphs although device.graph asks for it, for a log; empty: they are, or it
  // does not ask.
  [[nodiscard]] const std::string& not_recorded() const { return not_recorded_; }
  // From now on each step is computed call by call.
  void stop_recording();
  // How many numbers compute_gradients() returns for a micro-batch: a loss, or what PreferenceSums has.
  [[nodiscard]] std::size_t values_per_micro_batch() const { return reference_ ? PreferenceSums::kValues : 1; }

  // The gradients of this rank's micro-batches of the step after `completed` others; sums of buckets over the ranks
  // begin on the way. `next` gives the micro-batches in order. Returns their losses, sums over what step_weight()
  // counts, with values_per_micro_batch() numbers for each; valid until this or gradient_norm() is called.
  [[nodiscard]] std::span<const double> compute_gradients(std::int64_t completed,
                                                          const std::function<const TokenBatch&()>& next);
  // Waits until the gradients of all ranks are summed; tells `waits_for` (may be empty) each bucket that it waits for.
  // Throws Error(kTimeout, kPeerLost).
  void finish_gradients(const std::function<void(std::size_t bucket)>& waits_for = {}) { reducer_.finish(waits_for); }
  // What gradient_norm() tells while it computes a step again.
  struct Again {
    std::function<void(std::int64_t micro_batch)> computes = {};  // this rank's, from 0
    std::function<void(std::size_t bucket)> waits_for = {};
  };
  // Of the step's gradient. Collective where the optimizer is sharded, or the precision is fp16: while gradients
  // overflow that range, all ranks halve the loss's scale, and compute and sum them once more. Infinite or NaN where
  // that does not help.
  [[nodiscard]] double gradient_norm(std::int64_t completed, const Again& again);
  [[nodiscard]] double gradient_norm(std::int64_t completed) { return gradient_norm(completed, Again()); }
  // From gradient_norm() to the next step: what the reducer's gradient is to be multiplied by.
  [[nodiscard]] double gradient_scale() const { return gradient_scale_; }
  // The update with the gradient whose norm is `norm`, finite. Where the optimizer is sharded, each rank updates its
  // shard in slices, and a slice travels to the others while the next is computed.
  void update(std::int64_t completed, double learning_rate, double norm);

 private:
  void compute_micro_batches(std::int64_t completed, const std::function<const TokenBatch&()>& next);
  [[nodiscard]] double norm_of_sum();
  void compute_micro_batch(const TokenBatch& batch, const Transformer::DropoutStream& dropout);
  // Of this rank's `place`-th micro-batch, whose kernels are recorded when there is no recording yet.
  void run_recorded(std::size_t place, const TokenBatch& batch);
  // Whether the recordings, or those to be made, are of steps like this one.
  [[nodiscard]] bool are_recorded_alike() const;

  const Config& config_;
  Communicator& communicator_;
  Backend& backend_;
  const MicroBatchRange micro_batches_;  // of this rank
  const int world_;
  Arena arena_;
  Replica replica_;
  std::unique_ptr<ReferenceModel> reference_;
  std::vector<ElementRange> shards_;  // by rank; empty: every rank updates everything
  Optimizer optimizer_;
  GradReducer reducer_;
  Tape tape_;
  // A micro-batch as the device was asked to compute it. The loss and the memory of the batch are the recording's.
  struct Recorded {
    TokenBatch batch;
    std::int64_t step_targets = 0;
    Loss loss;
    std::unique_ptr<Backend::Recording> recording;
  };
  LossScaler loss_scaler_;
  double gradient_scale_ = 1;
  std::vector<TokenBatch> kept_;  // fp16: this rank's micro-batches of the step
  const std::string not_recorded_;
  bool records_;
  std::int64_t computed_steps_ = 0;
  std::vector<Recorded> recorded_;  // by this rank's micro-batches
  float recorded_scale_ = 1;        // of the loss
  std::vector<Loss> pending_;       // of this rank's micro-batches, perhaps still being computed
  std::vector<double> losses_;      // of this rank's micro-batches in this step: see compute_gradients()
  std::int64_t step_inputs_ = 0;
  std::int64_t step_targets_ = 0;
  std::int64_t step_pairs_ = 0;
  Buffer block_sums_;                              // f64, of the gradient's blocks
  std::vector<ElementRange> block_ranges_;         // by rank, of block_sums_
  std::vector<std::vector<ElementRange>> slices_;  // by slice and rank
  std::vector<Work> gathers_;
  double gather_ms_ = 0;
  double gather_wait_ms_ = 0;
};

// This rank's part of data.train, from a step on. data.trace is left out: the caller decides whether to keep one.
[[nodiscard]] BatchLoaderOptions loader_options(const Config& config, const Communicator& communicator,
                                                std::uint64_t first_step);

}  // namespace lockstep
