#include "trainer/optimizer.h"

#include <cassert>
#include <cmath>

namespace lockstep {

std::vector<DecayRange> decay_ranges(const ParameterLayout& layout) {
  std::vector<DecayRange> ranges;
  for (std::size_t p = 0; p < layout.size(); ++p) {
    const std::uint64_t begin = layout.offset(p);
    const std::uint64_t end = p + 1 < layout.size() ? layout.offset(p + 1) : layout.total();
    const ParameterSpec& spec = layout.specs()[p];
    if (!ranges.empty() && ranges.back().decay == spec.decay && ranges.back().rate == spec.rate) {
      ranges.back().elements.end = end;
    } else {
      ranges.push_back({{begin, end}, spec.decay, spec.rate});
    }
  }
  return ranges;
}

void update_adamw(Backend& backend, const OptimizerConfig& config, std::span<const DecayRange> ranges,
                  const AdamWUpdate& update) {
  const auto correction = [&](double beta) {
    return static_cast<float>(1.0 - std::pow(beta, static_cast<double>(update.step)));
  };
  AdamW adamw;
  adamw.gradient_scale = update.gradient_scale;
  adamw.beta1 = static_cast<float>(config.betas[0]);
  adamw.beta2 = static_cast<float>(config.betas[1]);
  adamw.epsilon = static_cast<float>(config.eps);
  adamw.bias_correction1 = correction(config.betas[0]);
  adamw.bias_correction2 = correction(config.betas[1]);
  for (const DecayRange& range : ranges) {
    const ElementRange elements = intersection(update.part, range.elements);
    if (elements.size() == 0) {
      continue;
    }
    const std::uint64_t begin = elements.begin - update.part.begin;
    adamw.master = update.master.subspan(begin, elements.size());
    adamw.exp_avg = update.exp_avg.subspan(begin, elements.size());
    adamw.exp_avg_sq = update.exp_avg_sq.subspan(begin, elements.size());
    adamw.gradient = update.gradient.subspan(begin, elements.size());
    adamw.learning_rate = static_cast<float>(update.learning_rate * range.rate);
    adamw.weight_decay = range.decay ? static_cast<float>(config.weight_decay) : 0.0F;
    backend.adamw(adamw);
  }
}

Optimizer::Optimizer(const ParameterLayout& layout, Backend& backend, const OptimizerConfig& config,
                     const ElementRange& owned)
    : backend_(backend),
      config_(config),
      owned_(owned),
      exp_avg_(backend.allocate(owned.size() * sizeof(float))),
      exp_avg_sq_(backend.allocate(owned.size() * sizeof(float))),
      ranges_(decay_ranges(layout)) {}

void Optimizer::update(const Update& update) {
  assert(intersection(owned_, update.part) == update.part);
  const double norm = update.gradient_norm;
  const bool clip = config_.clip_norm > 0 && norm > config_.clip_norm;
  const std::uint64_t begin = update.part.begin - owned_.begin;
  update_adamw(backend_, config_, ranges_,
               {.step = update.step,
                .learning_rate = update.learning_rate,
                .gradient_scale = static_cast<float>((clip ? config_.clip_norm / norm : 1.0) * update.gradient_scale),
                .part = update.part,
                .gradient = update.gradient,
                .master = update.master,
                .exp_avg = exp_avg().subspan(begin, update.part.size()),
                .exp_avg_sq = exp_avg_sq().subspan(begin, update.part.size())});
}

}  // namespace lockstep
