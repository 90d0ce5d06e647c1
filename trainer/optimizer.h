// AdamW over the flat parameters, with the gradient clipped by its global norm.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "ops/backend.h"
#include "trainer/config.h"
#include "trainer/flat_parameters.h"

namespace lockstep {

class Optimizer {
 public:
  // Allocates the moments, zero. `layout` and `backend` outlive it.
  Optimizer(const ParameterLayout& layout, Backend& backend, const OptimizerConfig& config);

  [[nodiscard]] std::span<float> exp_avg() const { return exp_avg_.as<float>(layout_.total()); }
  [[nodiscard]] std::span<float> exp_avg_sq() const { return exp_avg_sq_.as<float>(layout_.total()); }

  struct Step {
    std::int64_t step = 1;  // the first is 1
    double learning_rate = 0;
    std::span<const float> gradient;  // flat
    std::span<float> master;          // flat
  };
  // Returns the gradient's norm before clipping. When it is not finite nothing is changed: the caller stops the run.
  [[nodiscard]] double step(const Step& step);

 private:
  const ParameterLayout& layout_;
  Backend& backend_;
  OptimizerConfig config_;
  Buffer exp_avg_;
  Buffer exp_avg_sq_;
  struct Range {  // consecutive parameters with the same decay
    ElementRange elements;
    bool decay;
  };
  std::vector<Range> ranges_;
};

}  // namespace lockstep
