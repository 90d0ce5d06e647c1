#include <utility>

#include "base/error.h"
#include "ops/functions.h"
#include "ops/matrices.h"

namespace lockstep {

namespace {

WeightSizes check(const Tensor& x, const Linear& layer) {
  const WeightSizes sizes = sizes_of(layer);
  require(x.shape().rank() > 0 && x.dim(-1) == sizes.in, "linear: x {} does not fit the weight {} ({} inputs)",
          x.shape(), layer.weight.shape(), sizes.in);
  require(x.dtype() == layer.weight.dtype(), "linear: x is {}, the weight {}", name_of(x.dtype()),
          name_of(layer.weight.dtype()));
  require(!layer.bias.is_defined() || layer.bias.shape() == Shape{sizes.out}, "linear: bias {}, expected [{}]",
          layer.bias.shape(), sizes.out);
  return sizes;
}

Linear unpacked(Tape& tape, const Linear& layer) {
  return unpacked(tape.backend(), layer, [&](const Shape& shape, DType dtype) { return tape.make(shape, dtype); });
}
Linear unpacked(Gradients& gradients, const Linear& layer) {
  return unpacked(gradients.backend(), layer,
                  [&](const Shape& shape, DType dtype) { return gradients.make(shape, dtype); });
}

Gemm forward_of(const Tensor& x, const Linear& layer, const Tensor& y) {
  return {.a = matrix_of(x),
          .b = weight_in_out(layer),
          .d = matrix_of(y),
          .bias = layer.bias.is_defined() ? layer.bias.data() : nullptr};
}

Gemm input_gradient_of(const Tensor& dy, const Linear& layer, const Tensor& dx) {
  return {.a = matrix_of(dy), .b = transposed(weight_in_out(layer)), .d = matrix_of(dx)};
}

// What the gradient of the weight is made of is kept only where that is trained.
Tensor kept_for(const Linear& layer, const Tensor& x) { return Tape::is_trained(layer.weight) ? x : x.without_data(); }

void add_parameter_gradients(Gradients& gradients, const Linear& layer, const Tensor& x, const Tensor& dy) {
  Backend& backend = gradients.backend();
  if (Tape::is_trained(layer.weight)) {
    const auto dw = gradients.of_parameter(layer.weight);
    backend.gemm(weight_gradient(layer, matrix_of(x), matrix_of(dy), dw.value, dw.accumulate));
  }
  if (Tape::is_trained(layer.bias)) {
    const auto db = gradients.of_parameter(layer.bias);
    backend.column_sum(dy, db.value, db.accumulate);
  }
}

}  // namespace

// With the weight as w[in, out] (transposed in memory for kOutIn):
//   y = x w + b      dx = dy w^T      dw = x^T dy      db = the column sums of dy
Tensor linear(Tape& tape, const Tensor& x, const Linear& layer) {
  const WeightSizes sizes = check(x, layer);

  const Tensor y = tape.make_output({x.rows(), sizes.out}, x.dtype(), {&x, &layer.weight, &layer.bias});
  tape.backend().gemm(forward_of(x, unpacked(tape, layer), y));

  tape.record(y, {&layer.weight, &layer.bias},
              [x = kept_for(layer, x), y = y.without_data(), layer](Gradients& gradients) {
                const Tensor dy = gradients.take(y);
                if (Gradients::wants(x)) {
                  const Tensor dx = gradients.make(x.shape(), x.dtype());
                  gradients.backend().gemm(input_gradient_of(dy, unpacked(gradients, layer), dx));
                  gradients.add(x, dx);
                }
                add_parameter_gradients(gradients, layer, x, dy);
              });
  return y;
}

// hidden = gelu(before), before = x up:   dbefore = (dy down^T) * gelu'(before), and then as above.
Tensor gelu_mlp(Tape& tape, const Tensor& x, const GeluMlp& layer) {
  const WeightSizes sizes = check(x, layer.up);
  const Shape inner{x.rows(), sizes.out};
  const Tensor before = tape.make(inner, x.dtype());
  const Tensor hidden = tape.make(inner, x.dtype());
  const Tensor y = tape.make_output({x.rows(), check(hidden, layer.down).out}, x.dtype(),
                                    {&x, &layer.up.weight, &layer.up.bias, &layer.down.weight, &layer.down.bias});
  {
    const Linear plain = unpacked(tape, layer.up);
    Gemm up = forward_of(x, plain, hidden);
    up.epilogue = Epilogue::kGelu;
    up.before = before;
    tape.backend().gemm(up);
  }
  tape.backend().gemm(forward_of(hidden, unpacked(tape, layer.down), y));

  tape.record(y, {&layer.down.weight, &layer.down.bias, &layer.up.weight, &layer.up.bias},
              [x = kept_for(layer.up, x), before, hidden = kept_for(layer.down, hidden), y = y.without_data(),
               layer](Gradients& gradients) {
                const Tensor dy = gradients.take(y);
                add_parameter_gradients(gradients, layer.down, hidden, dy);
                if (!Gradients::wants(x) && !Tape::is_trained(layer.up.weight) && !Tape::is_trained(layer.up.bias)) {
                  return;
                }
                const Tensor dbefore = gradients.make(before.shape(), before.dtype());
                {
                  const Linear plain = unpacked(gradients, layer.down);
                  Gemm down = input_gradient_of(dy, plain, dbefore);
                  down.epilogue = Epilogue::kGeluGradient;
                  down.before = before;
                  gradients.backend().gemm(down);
                }
                add_parameter_gradients(gradients, layer.up, x, dbefore);
                if (Gradients::wants(x)) {
                  const Tensor dx = gradients.make(x.shape(), x.dtype());
                  gradients.backend().gemm(input_gradient_of(dbefore, unpacked(gradients, layer.up), dx));
                  gradients.add(x, dx);
                }
              });
  return y;
}

}  // namespace lockstep
