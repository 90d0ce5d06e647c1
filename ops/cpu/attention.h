// Causal attention, one block of query rows of one head at a time: scores, probabilities and their gradients never
// exist for more than that. See ops/backend.h for the arguments.
#pragma once

#include <cstddef>

#include "base/thread_pool.h"
#include "ops/backend.h"
#include "ops/cpu/gemm.h"

namespace lockstep::cpu {

// Working memory of one thread: some blocks of query rows by all keys, so it grows with the sequence, not its square.
[[nodiscard]] std::size_t attention_forward_scratch_bytes(const AttentionShape& shape, DType dtype);
[[nodiscard]] std::size_t attention_backward_scratch_bytes(const AttentionShape& shape, DType dtype);

void attention_forward(const AttentionForward& args, GemmCache& gemms, ThreadPool& pool);
void attention_backward(const AttentionBackward& args, GemmCache& gemms, ThreadPool& pool);

}  // namespace lockstep::cpu
