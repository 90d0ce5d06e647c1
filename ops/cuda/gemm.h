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
  // Opens cuBLASLt. With `tf32`, products of f32 take TF32. Throws Error(kUnsupported).
  explicit GemmCache(bool tf32);
  ~GemmCache();
  GemmCache(const GemmCache&) = delete;
  GemmCache& operator=(const GemmCache&) = delete;

  // Into compute_stream().
  void run(const Gemm& gemm);

 private:
  void run_whole(const Gemm& gemm);

  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lockstep::cuda
