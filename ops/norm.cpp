#include "base/error.h"
#include "ops/functions.h"

namespace lockstep {
namespace {

void check(const Tensor& x, const Norm& layer) {
  require(x.shape().rank() > 0 && layer.gain.shape() == Shape{x.dim(-1)}, "norm: gain {} does not fit x {}",
          layer.gain.shape(), x.shape());
  require(!layer.bias.is_defined() || layer.bias.shape() == layer.gain.shape(), "norm: bias {} does not fit gain {}",
          layer.bias.shape(), layer.gain.shape());
}

NormForward forward_of(Tape& tape, const Tensor& x, const Norm& layer, std::initializer_list<const Tensor*> inputs) {
  NormForward forward;
  forward.kind = layer.kind;
  forward.epsilon = layer.epsilon;
  forward.x = x;
  forward.gain = layer.gain;
  forward.bias = layer.bias;
  forward.y = tape.make_output(x.shape(), x.dtype(), inputs);
  if (layer.kind == NormKind::kLayer) {
    forward.mean = tape.make({x.rows()}, DType::kF32);
  }
  forward.rstd = tape.make({x.rows()}, DType::kF32);
  return forward;
}

// The gradient at the norm's input: through the norm, plus `dsum` that reaches it past the norm.
Tensor backward_of(Gradients& gradients, const NormForward& forward, const Tensor& sum, const Tensor& dsum) {
  NormBackward backward;
  backward.kind = forward.kind;
  backward.dy = gradients.take(forward.y);
  backward.dsum = dsum;
  backward.sum = sum;
  backward.gain = forward.gain;
  backward.mean = forward.mean;
  backward.rstd = forward.rstd;
  backward.dx = dsum.is_defined() ? gradients.make_from(dsum) : gradients.make(sum.shape(), sum.dtype());
  const auto dgain = gradients.of_parameter(forward.gain);
  backward.dgain = dgain.value;
  backward.accumulate_parameters = dgain.accumulate;
  if (forward.bias.is_defined()) {
    const auto dbias = gradients.of_parameter(forward.bias);
    backward.dbias = dbias.value;
    backward.accumulate_parameters |= dbias.accumulate;
  }
  gradients.backend().norm_backward(backward);
  return backward.dx;
}

}  // namespace

// With n = (sum - mean) * rstd and g = dy * gain:
//   dsum = rstd * (g - mean(g) - n * mean(g * n))      dgain = sum of dy * n      dbias = sum of dy
Tensor norm(Tape& tape, const Tensor& x, const Norm& layer) {
  check(x, layer);

  const NormForward forward = forward_of(tape, x, layer, {&x, &layer.gain, &layer.bias});
  tape.backend().norm_forward(forward);

  tape.record(forward.y, {&layer.gain, &layer.bias},
              [x, forward](Gradients& gradients) { gradients.add(x, backward_of(gradients, forward, x, Tensor())); });
  return forward.y;
}

SumAndNorm add_norm(Tape& tape, const Tensor& x, const Tensor& branch, const Dropout& dropout, const Norm& layer) {
  check(x, layer);
  require(branch.shape() == x.shape() && branch.dtype() == x.dtype(), "add_norm: branch {} {} does not fit x {} {}",
          name_of(branch.dtype()), branch.shape(), name_of(x.dtype()), x.shape());

  const std::initializer_list<const Tensor*> inputs = {&x, &branch, &layer.gain, &layer.bias};
  NormForward forward = forward_of(tape, x, layer, inputs);
  forward.branch = branch;
  forward.dropout = dropout;
  forward.sum = tape.make_output(x.shape(), x.dtype(), {&x, &branch});
  tape.backend().norm_forward(forward);

  forward.branch = branch.without_data();
  forward.x = Tensor();
  tape.record(forward.y, {&layer.gain, &layer.bias}, [x = x.without_data(), dropout, forward](Gradients& gradients) {
    const Tensor dsum = Gradients::wants(forward.sum) ? gradients.take(forward.sum) : Tensor();
    const Tensor dx = backward_of(gradients, forward, forward.sum, dsum);
    gradients.add(x, dx);
    if (dropout.probability > 0 && Gradients::wants(forward.branch)) {
      const Tensor dbranch = gradients.make(forward.branch.shape(), forward.branch.dtype());
      gradients.backend().dropout(dropout, dx, dbranch);
      gradients.add(forward.branch, dbranch);
    } else {
      gradients.add(forward.branch, dx);
    }
  });
  return {forward.sum, forward.y};
}

}  // namespace lockstep
