// Sums over rows and over everything; see ops/backend.h. All run in `stream`.
#pragma once

#include "ops/backend.h"
#include "ops/cuda/scratch.h"

namespace lockstep::cuda {

void column_sum(const Tensor& x, const Tensor& sums, bool accumulate, Scratch& scratch, cudaStream_t stream);
void scale_columns_gradient(const ColumnScaleGradient& gradient, Scratch& scratch, cudaStream_t stream);
// `block_sums` lies on the device: squares_blocks(values.size()) numbers.
void sums_of_squares(std::span<const float> values, double* block_sums, cudaStream_t stream);

}  // namespace lockstep::cuda
