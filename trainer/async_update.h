// What parameter servers do with a gradient in comm.mode bounded and async, and how workers tell them.
//
// Of W workers each pushes the gradient of its share of a step. W times the share is an estimate of the step's gradient
// from a W-th of its samples, and a push makes one AdamW update with it, by the rule for another batch size (Malladi et
// al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", 2022, section 5), so that the pushes of all
// workers weigh as one step where gradients are mostly noise: the learning rate is the schedule's at step (pushes so
// far) / W, divided by sqrt(W); moments decay by betas^(1/W), and their correction counts pushes; eps is sqrt(W) times
// as large; weights decay by lr * decay / W. Clipping is the worker's, by the norm of the estimate. With one worker
// this is the update of mode sync, to the bit.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "comm/server/store.h"
#include "ops/backend.h"
#include "trainer/config.h"
#include "trainer/flat_parameters.h"

namespace lockstep {

// What a share's gradient, whose norm is `norm`, is multiplied by.
[[nodiscard]] float push_scale(const OptimizerConfig& config, double norm, int workers);

// Everything that the workers of a job have to agree on, one value a line. `config` is resolved; `base_fingerprint`: of
// the model that a tuned run stands on, or preferences are measured against; empty for none.
[[nodiscard]] std::string describe_update(const Config& config, const ParameterLayout& layout, int workers,
                                          std::string_view data_fingerprint, std::string_view base_fingerprint);

// The rule of such a description; computes with `backend`, which outlives it. Throws Error(kCorrupt) for another text.
[[nodiscard]] std::unique_ptr<server::UpdateRule> make_update_rule(const std::string& description, ElementRange range,
                                                                   Backend& backend);

}  // namespace lockstep
