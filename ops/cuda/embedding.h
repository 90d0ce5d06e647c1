// Token and position embeddings; see ops/backend.h. All run in `stream`.
#pragma once

#include "ops/backend.h"
#include "ops/cuda/id_upload.h"
#include "ops/cuda/scratch.h"

namespace lockstep::cuda {

// `tokens` are the embedding's, on the device.
void embedding_forward(const Backend::Embedding& embedding, const std::int32_t* tokens, const Tensor& tokens_table,
                       const Tensor& positions_table, const Tensor& x, cudaStream_t stream);
// Rows of the same token are added in their order, without atomic additions: the host sorts them while the GPU is busy.
void embedding_backward(const Backend::Embedding& embedding, const Tensor& dx, const Tensor& dtokens_table,
                        const Tensor& dpositions_table, IdUpload& upload, Scratch& scratch, cudaStream_t stream);

}  // namespace lockstep::cuda
