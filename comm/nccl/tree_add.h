// Sums of arrays in GPU memory along the tree of comm/sum_tree.h: the same bits as its tree_sum().
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <span>

#include "base/dtype.h"

namespace lockstep::nccl {

inline constexpr std::size_t kMaxSourcesAtOnce = 64;

// Puts into `stream`: destination[i] = the tree sum over sources[0][i], sources[1][i], ..., for i < count. f32 or f64;
// at least one source. The destination is one of the sources or overlaps none. Beyond kMaxSourcesAtOnce sources the sum
// goes by levels, and every kMaxSourcesAtOnce-th source receives a partial sum.
// Fastest where all arrays lie equally far behind a multiple of 16 bytes. Throws Error(kDevice).
void tree_add(std::span<void* const> sources, void* destination, std::size_t count, DType dtype, cudaStream_t stream);

}  // namespace lockstep::nccl
