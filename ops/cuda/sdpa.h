// Causal attention by cuDNN's fused kernels ("scaled dot-product attention").
//
// cuDNN is given the computation as a graph of elementary operations, recognises it, and compiles a kernel for its
// shape. Forward it is FlashAttention (Dao 2023), which stores no scores. The gradient takes the reproducible form: it
// stores the scores' gradients, of at most 1 GiB at a time where the shape can be cut so, and gets dq by a matrix
// product instead of atomic additions. Where cuDNN cannot do that, it is not used.
//
// One thread calls, with the GPU in use that was in use at construction.
#pragma once

#include <memory>
#include <string>

#include "base/cuda/runtime.h"
#include "ops/backend.h"
#include "ops/cuda/recorder.h"

namespace lockstep::cuda {

class Sdpa {
 public:
  // cuDNN's kernels are for GPUs of this compute_capability() and newer.
  static constexpr int kOldestCapability = kAmpere;

  // Opens cuDNN and ties it to compute_stream(). Throws Error(kUnsupported) where cuDNN is absent or too old.
  explicit Sdpa(Recorder& recorder);
  ~Sdpa();
  Sdpa(const Sdpa&) = delete;
  Sdpa& operator=(const Sdpa&) = delete;

  // True when the computation was put into compute_stream(). False when cuDNN does not serve such a call on this GPU:
  // nothing was done then, and the answer is the same for every later call of this shape. The first call of a shape
  // compiles, and allocates device memory where earlier ones needed less; later ones do neither.
  // Throws Error(kDevice) when cuDNN took the shape and fails at the work, or when memory is short.
  [[nodiscard]] bool forward(const AttentionForward& args);
  [[nodiscard]] bool backward(const AttentionBackward& args);

  // Why the latest new shape that was refused was refused, for a log; empty before there was one.
  [[nodiscard]] const std::string& last_refusal() const;

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace lockstep::cuda
