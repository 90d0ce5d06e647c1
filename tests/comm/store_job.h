// Servers that hold weights, with a rule whose result tells which gradients were applied, how often and when.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "comm/server/store.h"

namespace lockstep::test {

// w = w / 2 + scale * gradient, and the moments count: the order of updates is in the weights' bits.
class HalvingRule final : public server::UpdateRule {
 public:
  void apply(const Update& update) override {
    for (std::size_t i = 0; i < update.weights.size(); ++i) {
      update.weights[i] = 0.5F * update.weights[i] + update.scale * update.gradient[i];
      update.exp_avg[i] += 1.0F;
      update.exp_avg_sq[i] = static_cast<float>(update.number);
    }
  }
  // One more for each: tests see how far ahead a pull looked.
  void look_ahead(const Outlook& outlook) const override {
    for (float& weight : outlook.weights) {
      weight += static_cast<float>(outlook.pushes);
    }
  }
};

inline std::unique_ptr<server::UpdateRule> make_halving_rule(const std::string&, ElementRange) {
  return std::make_unique<HalvingRule>();
}

// What rank `rank` pushes in step `step`.
inline std::vector<float> gradient_of(std::uint32_t rank, std::uint64_t step, std::size_t count) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) {
    values[i] = static_cast<float>((i * 31 + step * 7 + rank * 3) % 101) / 8.0F;
  }
  return values;
}

}  // namespace lockstep::test
