// Attention by kernels of our own, for what cuDNN does not take (sdpa.h): f32, dropout, a cache, widths and cards that
// it does not know, sequences that differ in length. Scores are computed block by block and never stored (Dao et al.
// 2022, "FlashAttention"); the gradients of keys and of queries are computed by a kernel each, which costs two products
// more and needs no atomic addition. Products run in f32 on the ordinary cores, or, where attention_tensor.h takes the
// call, in the dtype on the tensor cores. What one set of kernels keeps for the gradient, the other can use.
#pragma once

#include "ops/backend.h"
#include "ops/cuda/scratch.h"
#include "ops/cuda/sequence_tables.h"

namespace lockstep::cuda {

inline constexpr std::int64_t kWidestHead = 256;

// head_dim is at most kWidestHead.
void attention_forward(const AttentionForward& args, SequenceTables& tables, cudaStream_t stream);
void attention_backward(const AttentionBackward& args, SequenceTables& tables, Scratch& scratch, cudaStream_t stream);

}  // namespace lockstep::cuda
