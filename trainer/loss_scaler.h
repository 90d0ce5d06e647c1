// What the loss of a run in fp16 is multiplied by, so that gradients lie in fp16's range: dynamic loss scaling
// (Micikevicius et al., "Mixed Precision Training", 2018, section 3.2). Scales are powers of two: multiplying by such a
// scale and dividing again changes no bit of what stays in range.
//
// A step whose gradients overflow is not left out, as elsewhere, but computed again at half the scale: no sample is
// lost, and the learning rate and the optimizer's corrections count every step. The scale is a part of the run's state.
#pragma once

#include <cstdint>

#include "trainer/config.h"

namespace lockstep {

class LossScaler {
 public:
  static constexpr double kLeast = 1;  // gradients that overflow at this are those of the loss itself
  static constexpr double kMost = 0x1p40;

  struct State {
    double scale = 1;
    std::int64_t steps = 0;  // that went well at this scale

    friend bool operator==(const State&, const State&) = default;
  };

  // Whether a scaler can come into it: a power of two within the bounds.
  [[nodiscard]] static bool is_possible(const State& state);

  // `config` is resolved. Another precision than fp16 has the scale 1 for ever.
  explicit LossScaler(const TrainConfig& config);

  [[nodiscard]] bool is_on() const { return is_on_; }
  [[nodiscard]] float scale() const { return static_cast<float>(state_.scale); }

  // Gradients overflowed. False: at the smallest scale, which stays.
  [[nodiscard]] bool lower();
  // A step went well; after train.loss_scale_window of them in a row the scale doubles.
  void count_step();

  [[nodiscard]] const State& state() const { return state_; }
  // Goes on from a state of an earlier process. Without fp16 nothing comes of it.
  void restore(const State& state);

 private:
  bool is_on_;
  std::int64_t window_;
  State state_;
};

}  // namespace lockstep
