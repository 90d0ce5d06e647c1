// The learning rate as a pure function of the step and the configuration.
#pragma once

#include <cstdint>

#include "trainer/config.h"

namespace lockstep {

// The rate of the step that is taken when `completed_steps` steps lie behind, in [0, train.steps).
//
// With t = completed_steps + 1, W = warmup_steps and S = train.steps: for t <= W the rate is lr * t / W. After that
//   constant  lr
//   linear    lr + (min_lr - lr) * p,                        p = (t - W) / (S - W)
//   cosine    min_lr + (lr - min_lr) * (1 + cos(pi p)) / 2,  the same p
//   wsd       lr, and over the last D = decay_steps steps lr + (min_lr - lr) * (t - (S - D)) / D
// so the last step of a decaying schedule has min_lr exactly. Beyond S the rate stays what it was in step S.
[[nodiscard]] double learning_rate(const Config& config, std::int64_t completed_steps);

}  // namespace lockstep
