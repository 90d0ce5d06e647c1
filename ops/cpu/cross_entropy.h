// Softmax, loss and gradient of a chunk of logits. What it computes is said in ops/backend.h.
#pragma once

#include "base/thread_pool.h"
#include "ops/backend.h"

namespace lockstep::cpu {

void cross_entropy(const CrossEntropy& cross_entropy, ThreadPool& pool);

}  // namespace lockstep::cpu
