// Products of f16, and of bf16 on processors for which oneDNN has none (below AVX-512): the operands are widened to
// f32, multiplied there and, when d is narrow, rounded once, which is what the native primitives of bf16 compute.
#pragma once

#include <functional>

#include "base/thread_pool.h"
#include "ops/backend.h"

namespace lockstep::cpu {

// Calls product(wide) with the operands of `gemm` in f32, in memory that the calling thread keeps, and brings the
// result into gemm.d. Conversions run on all threads of the pool, or on the calling one alone without a pool.
void multiply_widened(const Gemm& gemm, ThreadPool* pool, const std::function<void(const Gemm& wide)>& product);

}  // namespace lockstep::cpu
