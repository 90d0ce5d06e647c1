// Causal attention, one block of query rows of one head at a time: scores, probabilities and their gradients never
// exist for more than that. See ops/backend.h for the arguments.
#pragma once

#include "base/thread_pool.h"
#include "ops/backend.h"
#include "ops/cpu/gemm.h"

namespace lockstep::cpu {

void attention_forward(const AttentionForward& args, GemmCache& gemms, ThreadPool& pool);
void attention_backward(const AttentionBackward& args, GemmCache& gemms, ThreadPool& pool);

}  // namespace lockstep::cpu
