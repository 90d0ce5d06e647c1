#include "trainer/optimizer.h"

#include <cassert>
#include <cmath>

namespace lockstep {

Optimizer::Optimizer(const ParameterLayout& layout, Backend& backend, const OptimizerConfig& config,
                     const ElementRange& owned)
    : backend_(backend),
      config_(config),
      owned_(owned),
      exp_avg_(backend.allocate(owned.size() * sizeof(float))),
      exp_avg_sq_(backend.allocate(owned.size() * sizeof(float))) {
  for (std::size_t p = 0; p < layout.size(); ++p) {
    const std::uint64_t begin = layout.offset(p);
    const std::uint64_t end = p + 1 < layout.size() ? layout.offset(p + 1) : layout.total();
    const ParameterSpec& spec = layout.specs()[p];
    if (!ranges_.empty() && ranges_.back().decay == spec.decay && ranges_.back().rate == spec.rate) {
      ranges_.back().elements.end = end;
    } else {
      ranges_.push_back({{begin, end}, spec.decay, spec.rate});
    }
  }
}

void Optimizer::update(const Update& update) {
  assert(intersection(owned_, update.part) == update.part);
  const double norm = update.gradient_norm;
  const bool clip = config_.clip_norm > 0 && norm > config_.clip_norm;
  AdamW adamw;
  adamw.gradient_scale = clip ? static_cast<float>(config_.clip_norm / norm) : 1.0F;
  adamw.beta1 = static_cast<float>(config_.betas[0]);
  adamw.beta2 = static_cast<float>(config_.betas[1]);
  adamw.epsilon = static_cast<float>(config_.eps);
  adamw.bias_correction1 = static_cast<float>(1.0 - std::pow(config_.betas[0], static_cast<double>(update.step)));
  adamw.bias_correction2 = static_cast<float>(1.0 - std::pow(config_.betas[1], static_cast<double>(update.step)));
  for (const Range& range : ranges_) {
    const ElementRange elements = intersection(update.part, range.elements);
    if (elements.size() == 0) {
      continue;
    }
    adamw.master = update.master.subspan(elements.begin - update.part.begin, elements.size());
    adamw.exp_avg = exp_avg().subspan(elements.begin - owned_.begin, elements.size());
    adamw.exp_avg_sq = exp_avg_sq().subspan(elements.begin - owned_.begin, elements.size());
    adamw.gradient = update.gradient.subspan(elements.begin - update.part.begin, elements.size());
    adamw.learning_rate = static_cast<float>(update.learning_rate * range.rate);
    adamw.weight_decay = range.decay ? static_cast<float>(config_.weight_decay) : 0.0F;
    backend_.adamw(adamw);
  }
}

}  // namespace lockstep
