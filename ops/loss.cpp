#include <algorithm>
#include <numeric>
#include <vector>

#include "base/error.h"
#include "ops/functions.h"
#include "ops/matrices.h"

namespace lockstep {
namespace {

void check(const Tensor& x, const WeightSizes& sizes, std::span<const std::int32_t> targets) {
  require(x.shape().rank() > 0 && x.dim(-1) == sizes.in,
          "linear_cross_entropy: x {} does not fit a head with {} inputs", x.shape(), sizes.in);
  require(static_cast<std::int64_t>(targets.size()) == x.rows(), "linear_cross_entropy: {} targets for x {}",
          targets.size(), x.shape());
  for (const std::int32_t target : targets) {
    require(target >= -1 && target < sizes.out, "linear_cross_entropy: target {} is outside the vocabulary of {}",
            target, sizes.out);
  }
}

}  // namespace

double Loss::sum() const {
  std::vector<float> copied;
  std::span<const float> values = row_losses.as<float>();
  if (row_losses.device().kind != DeviceKind::kCpu) {
    copied.resize(values.size());
    backend->copy(row_losses.buffer(), view_of(std::span(copied)));
    values = copied;
  }
  return std::accumulate(values.begin(), values.end(), 0.0,
                         [](double total, float loss) { return total + static_cast<double>(loss); });
}

// For each chunk of rows: logits = x w, loss = -log softmax(logits)[target], dlogits = scale * (softmax - onehot), and
// while they are there dx = dlogits w^T and dw += x^T dlogits. The chunks depend on the vocabulary alone.
Loss linear_cross_entropy(Tape& tape, const Tensor& x, const Linear& head, const LossTargets& targets) {
  const WeightSizes sizes = sizes_of(head);
  check(x, sizes, targets.targets);
  require(!head.bias.is_defined(), "linear_cross_entropy: a head with a bias");

  Backend& backend = tape.backend();
  const std::int64_t rows = x.rows();
  const Backend::LogitsShape shape = backend.logits_shape(sizes.out, x.dtype());
  const std::int64_t chunk = std::min(rows, shape.rows);
  Loss loss;
  loss.value = tape.make_output({1}, DType::kF32, {&x, &head.weight});
  const bool training = tape.is_recording() && Gradients::wants(loss.value);
  const bool trains_head = training && Tape::is_trained(head.weight);
  const bool wants_dx = training && Gradients::wants(x);
  const Tensor logits = tape.make({chunk, shape.stride}, shape.dtype);
  const bool narrow = training && x.dtype() != shape.dtype;
  const Tensor dlogits = narrow ? tape.make(logits.shape(), x.dtype()) : logits;
  const Tensor dx = wants_dx ? tape.make(x.shape(), x.dtype()) : Tensor();
  loss.row_losses = tape.make({rows}, DType::kF32);
  loss.backend = &backend;
  Gradients::OfParameter dw;
  if (trains_head) {
    dw = tape.gradient_of_parameter(head.weight);
    if (rows == 0 && !dw.accumulate) {
      backend.fill_zero(dw.value);
    }
  }

  for (std::int64_t begin = 0; begin < rows; begin += chunk) {
    const std::int64_t n = std::min(chunk, rows - begin);
    const Tensor x_rows = x.reshaped({rows, sizes.in}).slice(begin, n);
    const Tensor logits_rows = logits.slice(0, n);
    const Tensor dlogits_rows = dlogits.slice(0, n);
    backend.gemm({.a = matrix_of(x_rows), .b = weight_in_out(head), .d = first_columns(logits_rows, sizes.out)});
    backend.cross_entropy(
        {.logits = logits_rows,
         .vocabulary = sizes.out,
         .targets = targets.targets.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(n)),
         .scale = targets.scale,
         .dlogits = training ? dlogits_rows : Tensor(),
         .losses = loss.row_losses.slice(begin, n)});
    const Matrix gradient = first_columns(dlogits_rows, sizes.out);
    if (wants_dx) {
      const Tensor dx_rows = dx.reshaped({rows, sizes.in}).slice(begin, n);
      backend.gemm({.a = gradient, .b = transposed(weight_in_out(head)), .d = matrix_of(dx_rows)});
    }
    if (trains_head) {
      backend.gemm(weight_gradient(head, matrix_of(x_rows), gradient, dw.value, dw.accumulate || begin > 0));
    }
  }
  loss.count = std::ranges::count_if(targets.targets, [](std::int32_t target) { return target >= 0; });

  tape.record(loss.value, {&head.weight}, [x, dx, value = loss.value](Gradients& gradients) {
    static_cast<void>(gradients.take(value));
    gradients.add(x, dx);
  });
  return loss;
}

}  // namespace lockstep
