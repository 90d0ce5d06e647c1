#include <utility>

#include "base/error.h"
#include "ops/functions.h"
#include "ops/matrices.h"

namespace lockstep {

// With the weight as w[in, out] (transposed in memory for kOutIn):
//   y = x w + b      dx = dy w^T      dw = x^T dy      db = the column sums of dy
Tensor linear(Tape& tape, const Tensor& x, const Linear& layer) {
  const WeightSizes sizes = sizes_of(layer);
  require(x.shape().rank() > 0 && x.dim(-1) == sizes.in, "linear: x {} does not fit the weight {} ({} inputs)",
          x.shape(), layer.weight.shape(), sizes.in);
  require(x.dtype() == layer.weight.dtype(), "linear: x is {}, the weight {}", name_of(x.dtype()),
          name_of(layer.weight.dtype()));
  require(!layer.bias.is_defined() || layer.bias.shape() == Shape{sizes.out}, "linear: bias {}, expected [{}]",
          layer.bias.shape(), sizes.out);

  const Tensor y = tape.make_variable({x.rows(), sizes.out}, x.dtype());
  tape.backend().gemm({.a = matrix_of(x),
                       .b = weight_in_out(layer),
                       .d = matrix_of(y),
                       .bias = layer.bias.is_defined() ? layer.bias.data() : nullptr});

  tape.record({&layer.weight, &layer.bias}, [x, y = y.without_data(), layer](Gradients& gradients) {
    const Tensor dy = gradients.take(y);
    Backend& backend = gradients.backend();
    if (Gradients::wants(x)) {
      const Tensor dx = gradients.make(x.shape(), x.dtype());
      backend.gemm({.a = matrix_of(dy), .b = transposed(weight_in_out(layer)), .d = matrix_of(dx)});
      gradients.add(x, dx);
    }
    const auto dw = gradients.of_parameter(layer.weight);
    backend.gemm(weight_gradient(layer, x, dy, dw.value, dw.accumulate));
    if (layer.bias.is_defined()) {
      const auto db = gradients.of_parameter(layer.bias);
      backend.column_sum(dy, db.value, db.accumulate);
    }
  });
  return y;
}

}  // namespace lockstep
