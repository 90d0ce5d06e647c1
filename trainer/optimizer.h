// AdamW over the flat parameters, or the part of them that a rank updates, with the gradient clipped by its global
// norm.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "ops/backend.h"
#include "trainer/config.h"
#include "trainer/flat_parameters.h"

namespace lockstep {

// Consecutive parameters with the same decay and rate.
struct DecayRange {
  ElementRange elements;
  bool decay = false;
  double rate = 1;

  friend bool operator==(const DecayRange&, const DecayRange&) = default;
};
[[nodiscard]] std::vector<DecayRange> decay_ranges(const ParameterLayout& layout);

// One update of elements `part` of the flat layout, of which the spans are.
struct AdamWUpdate {
  std::int64_t step = 1;  // the first is 1
  double learning_rate = 0;
  float gradient_scale = 1;
  ElementRange part;
  std::span<const float> gradient;
  std::span<float> master;
  std::span<float> exp_avg;
  std::span<float> exp_avg_sq;
};
void update_adamw(Backend& backend, const OptimizerConfig& config, std::span<const DecayRange> ranges,
                  const AdamWUpdate& update);

class Optimizer {
 public:
  // Allocates the moments of `owned`, zero. `backend` outlives it.
  Optimizer(const ParameterLayout& layout, Backend& backend, const OptimizerConfig& config, const ElementRange& owned);

  [[nodiscard]] const ElementRange& owned() const { return owned_; }
  // Of owned(), on the backend's device.
  [[nodiscard]] std::span<float> exp_avg() const { return exp_avg_.as<float>(owned_.size()); }
  [[nodiscard]] std::span<float> exp_avg_sq() const { return exp_avg_sq_.as<float>(owned_.size()); }

  struct Update {
    std::int64_t step = 1;  // the first is 1
    double learning_rate = 0;
    double gradient_norm = 0;         // of the whole gradient, finite: decides on clipping
    double gradient_scale = 1;        // what `gradient` is multiplied by first; gradient_norm is that of the product
    ElementRange part;                // of the flat layout, within owned()
    std::span<const float> gradient;  // of `part`
    std::span<float> master;          // of `part`
  };
  void update(const Update& update);

 private:
  Backend& backend_;
  OptimizerConfig config_;
  ElementRange owned_;
  Buffer exp_avg_;
  Buffer exp_avg_sq_;
  std::vector<DecayRange> ranges_;
};

}  // namespace lockstep
