// Kernels to which it matters in which row or column of a matrix an element stands; see ops/backend.h for what each
// computes. All run in `stream`.
#pragma once

#include <cuda_runtime_api.h>

#include "ops/backend.h"

namespace lockstep::cuda {

// head_dim is at most kWidestRotaryHead.
inline constexpr std::int64_t kWidestRotaryHead = 512;
// `places`: of each row in its sequence, where the rope has lengths; otherwise null.
void rope(const Rope& rope, const std::int32_t* places, cudaStream_t stream);
// d[m, n] += bias[n], for products whose epilogue cannot.
void add_bias(const Matrix& d, const void* bias, DType bias_dtype, cudaStream_t stream);
void unpack(const PackedWeight& weight, const Tensor& out, cudaStream_t stream);
void row_norms(const Matrix& x, const Tensor& norms, cudaStream_t stream);
void scale_columns(const ColumnScale& scale, cudaStream_t stream);

}  // namespace lockstep::cuda
