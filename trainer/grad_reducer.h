// Sums the gradients of all micro-batches of all ranks along one binary tree, while the backward pass is still running.
//
// A rank adds its own micro-batches like a binary counter: the gradient of micro-batch i stays apart until its
// neighbour's is there, then the two are added, and so on up the tree (docs/determinism.md). During the last
// micro-batch a bucket, a contiguous range of the flat layout, is added up and handed to the communicator as soon as
// its last gradient is final.
//
//   for each micro-batch: tape.backward(loss);  reducer.end_micro_batch();
//   reducer.finish();  use reducer.gradient();
//
// One thread uses a GradReducer. Its buffers are allocated once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "comm/communicator.h"
#include "ops/backend.h"
#include "ops/tape.h"
#include "trainer/flat_parameters.h"

namespace lockstep {

// Contiguous ranges of the flat layout, in its order, that cover it: each closes with the parameter that makes it reach
// bucket_bytes.
struct Bucket {
  ElementRange range;
  std::size_t first_parameter = 0;
  std::size_t last_parameter = 0;  // inclusive
};
[[nodiscard]] std::vector<Bucket> make_buckets(const ParameterLayout& layout, std::uint64_t bucket_bytes);

class GradReducer final : public GradientSink {
 public:
  struct Options {
    std::int64_t local_micro_batches = 1;    // of this rank in a step
    std::int64_t largest_micro_batches = 1;  // of any rank: decides how many buffers all of them allocate
    std::uint64_t bucket_bytes = std::uint64_t{25} << 20;
    // The elements whose sum each rank needs, by rank; empty: every rank needs all of them.
    std::vector<ElementRange> owned = {};
  };
  // Collective. `layout`, `communicator` and `backend` outlive it.
  GradReducer(const ParameterLayout& layout, Communicator& communicator, Backend& backend, const Options& options);

  [[nodiscard]] Tensor gradient_of(int parameter) override;
  void gradient_ready(int parameter) override;

  // In place of gradient_ready() for all parameters, where the backward pass was recorded (Backend::record()) and runs
  // again: the recording starts the buckets that travel.
  void skip_micro_batch();
  // After each backward pass.
  void end_micro_batch();
  // Waits until the sum over all ranks is complete and starts the next step. Tells `waits_for` (may be empty) each
  // bucket that it waits for. Throws Error(kTimeout, kPeerLost).
  void finish(const std::function<void(std::size_t bucket)>& waits_for = {});
  // The sum, where this rank owns it; valid from finish() until the next backward pass.
  [[nodiscard]] std::span<const float> gradient() const { return flat(0); }

  // Of the last step: from the first bucket's start to the last one's end, and the part of it that finish() waited.
  [[nodiscard]] double comm_ms() const { return comm_ms_; }
  [[nodiscard]] double exposed_ms() const { return exposed_ms_; }

 private:
  [[nodiscard]] std::span<float> flat(std::size_t buffer) const;
  [[nodiscard]] bool in_last_micro_batch() const { return micro_batch_ + 1 == options_.local_micro_batches; }
  // Adds the ranges of the `merges` topmost partial sums into the ones below.
  void merge(const ElementRange& range, std::size_t merges);
  void start_bucket(std::size_t bucket);

  const ParameterLayout& layout_;
  Communicator& communicator_;
  Backend& backend_;
  Options options_;
  std::vector<Bucket> buckets_;
  std::vector<std::vector<ElementRange>> bucket_owned_;  // by bucket and rank, from the bucket's first element
  std::vector<std::size_t> bucket_of_;                   // by parameter
  std::vector<std::size_t> bucket_pending_;              // parameters whose gradient is not final yet
  std::vector<Buffer> buffers_;  // partial sums, the oldest first; the current micro-batch writes the topmost
  std::size_t top_ = 0;
  std::int64_t micro_batch_ = 0;
  std::vector<Work> works_;
  double first_start_ms_ = 0;
  double comm_ms_ = 0;
  double exposed_ms_ = 0;
};

}  // namespace lockstep
