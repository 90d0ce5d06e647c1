#include "trainer/optimizer.h"

#include <cmath>

namespace lockstep {

Optimizer::Optimizer(const ParameterLayout& layout, Backend& backend, const OptimizerConfig& config)
    : layout_(layout),
      backend_(backend),
      config_(config),
      exp_avg_(Buffer::allocate(layout.total() * sizeof(float))),
      exp_avg_sq_(Buffer::allocate(layout.total() * sizeof(float))) {
  for (std::size_t p = 0; p < layout.size(); ++p) {
    const std::uint64_t begin = layout.offset(p);
    const std::uint64_t end = p + 1 < layout.size() ? layout.offset(p + 1) : layout.total();
    const bool decay = layout.specs()[p].decay;
    if (!ranges_.empty() && ranges_.back().decay == decay) {
      ranges_.back().elements.end = end;
    } else {
      ranges_.push_back({{begin, end}, decay});
    }
  }
}

double Optimizer::step(const Step& step) {
  const double norm = std::sqrt(backend_.sum_of_squares(step.gradient));
  if (!std::isfinite(norm)) {
    return norm;
  }
  const bool clip = config_.clip_norm > 0 && norm > config_.clip_norm;
  AdamW adamw;
  adamw.gradient_scale = clip ? static_cast<float>(config_.clip_norm / norm) : 1.0F;
  adamw.learning_rate = static_cast<float>(step.learning_rate);
  adamw.beta1 = static_cast<float>(config_.betas[0]);
  adamw.beta2 = static_cast<float>(config_.betas[1]);
  adamw.epsilon = static_cast<float>(config_.eps);
  adamw.bias_correction1 = static_cast<float>(1.0 - std::pow(config_.betas[0], static_cast<double>(step.step)));
  adamw.bias_correction2 = static_cast<float>(1.0 - std::pow(config_.betas[1], static_cast<double>(step.step)));
  for (const Range& range : ranges_) {
    const auto part = [&](std::span<float> flat) { return flat.subspan(range.elements.begin, range.elements.size()); };
    adamw.master = part(step.master);
    adamw.exp_avg = part(exp_avg());
    adamw.exp_avg_sq = part(exp_avg_sq());
    adamw.gradient = step.gradient.subspan(range.elements.begin, range.elements.size());
    adamw.weight_decay = range.decay ? static_cast<float>(config_.weight_decay) : 0.0F;
    backend_.adamw(adamw);
  }
  return norm;
}

}  // namespace lockstep
