// Layer norm and RMS norm. What they compute is said in ops/backend.h.
//
// Statistics are taken from the sum as it is stored (rounded to the working dtype), mean first and then squares of the
// differences, so that add-and-norm gives the bits of an addition followed by a norm.
#pragma once

#include "base/thread_pool.h"
#include "ops/backend.h"

namespace lockstep::cpu {

void norm_forward(const NormForward& norm, ThreadPool& pool);
void norm_backward(const NormBackward& norm, ThreadPool& pool);

}  // namespace lockstep::cpu
