// Table look-ups and their gradient. What they compute is said in ops/backend.h.
#pragma once

#include "base/thread_pool.h"
#include "ops/backend.h"

namespace lockstep::cpu {

void embedding_forward(const Backend::Embedding& embedding, const Tensor& tokens_table, const Tensor& positions_table,
                       const Tensor& x, ThreadPool& pool);
void embedding_backward(const Backend::Embedding& embedding, const Tensor& dx, const Tensor& dtokens_table,
                        const Tensor& dpositions_table, ThreadPool& pool);

}  // namespace lockstep::cpu
