// Attention in bf16 and f16 on the tensor cores, in the manner of Dao 2023, "FlashAttention-2": attention.h calls it
// where it can. Sums, softmax and what the gradient is given (log_sum_exp, delta) are f32 and mean the same as there;
// probabilities and their gradients are rounded to the dtype as factors of the next product, and only there.
#pragma once

#include "ops/backend.h"

namespace lockstep::cuda {
class AttentionLaunch;
}

namespace lockstep::cuda::tensor_cores {

// bf16 or f16, heads of 8, 16, ... or 128, and rows that lie where 16 bytes can be read at once.
[[nodiscard]] bool take(const AttentionForward& args);
[[nodiscard]] bool take(const AttentionBackward& args);

// Of a call that take() takes, with at least one query.
void attention_forward(const AttentionForward& args, const AttentionLaunch& launch_kernel);
// `delta` has the place of log_sum_exp: the dot products of out and dout.
void attention_backward(const AttentionBackward& args, float* delta, const AttentionLaunch& launch_kernel);

}  // namespace lockstep::cuda::tensor_cores
