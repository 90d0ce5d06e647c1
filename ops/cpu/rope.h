// Rotary position embedding. What it computes is said in ops/backend.h.
//
// The angle is position * inverse_frequency rounded to f32, as Hugging Face's models have it; its sine and cosine are
// good to 1e-7 for angles up to 2^24.
#pragma once

#include "base/thread_pool.h"
#include "ops/backend.h"

namespace lockstep::cpu {

void rope(const Rope& rope, ThreadPool& pool);

}  // namespace lockstep::cpu
