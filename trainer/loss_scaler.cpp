#include "trainer/loss_scaler.h"

#include <algorithm>
#include <cassert>
#include <cmath>

namespace lockstep {

LossScaler::LossScaler(const TrainConfig& config)
    : is_on_(config.precision == Precision::kFp16), window_(config.loss_scale_window) {
  if (is_on_) {
    assert(config.loss_scale > 0);
    state_.scale = config.loss_scale;
  }
}

bool LossScaler::is_possible(const State& state) {
  int exponent = 0;
  return state.scale >= kLeast && state.scale <= kMost && std::frexp(state.scale, &exponent) == 0.5 && state.steps >= 0;
}

bool LossScaler::lower() {
  if (!is_on_ || state_.scale <= kLeast) {
    return false;
  }
  state_ = {state_.scale / 2, 0};
  return true;
}

void LossScaler::count_step() {
  if (is_on_ && ++state_.steps >= window_) {
    state_ = {std::min(2 * state_.scale, kMost), 0};
  }
}

void LossScaler::restore(const State& state) {
  if (is_on_) {
    state_ = state;
  }
}

}  // namespace lockstep
