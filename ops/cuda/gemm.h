// Matrix products by cuBLASLt.
//
// A product's algorithm is what cuBLASLt's heuristic puts first for its shape, types and alignment, so it does not
// depend on what ran before, and neither do the bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>

#include "ops/backend.h"

namespace lockstep::cuda {

class GemmCache {
 public:
  // Opens cuBLASLt. With `tf32`, products of f32 take TF32. Throws Error(kUnsupported), also where the GPU has none.
  explicit GemmCache(bool tf32);
  ~GemmCache();
  GemmCache(const GemmCache&) = delete;
  GemmCache& operator=(const GemmCache&) = delete;

  // Whether the GPU has products of `working`.
  [[nodiscard]] bool has_native(DType working) const;

  // Into compute_stream(). Throws Error(kUnsupported) where has_native() is not so.
  void run(const Gemm& gemm);

 private:
  void run_whole(const Gemm& gemm);

  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lockstep::cuda
