#include <algorithm>
#include <vector>

#include "base/error.h"
#include "ops/functions.h"
#include "ops/matrices.h"

namespace lockstep {
namespace {

// Logits of one chunk: about this much memory; but so many rows at least, because each chunk passes over the head's
// weights and their gradient once, which takes longer than the products when it has few.
constexpr std::int64_t kChunkBytes = std::int64_t{8} << 20;
constexpr std::int64_t kMinChunkRows = 256;

std::int64_t chunk_rows(std::int64_t vocabulary) {
  const std::int64_t rows = kChunkBytes / (vocabulary * static_cast<std::int64_t>(sizeof(float)));
  return std::max(kMinChunkRows, rows / kMinChunkRows * kMinChunkRows);
}

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

// For each chunk of rows: logits = x w, loss = -log softmax(logits)[target], dlogits = scale * (softmax - onehot), and
// while they are there dx = dlogits w^T and dw += x^T dlogits. The chunks depend on the vocabulary alone.
Loss linear_cross_entropy(Tape& tape, const Tensor& x, const Linear& head, const LossTargets& targets) {
  const WeightSizes sizes = sizes_of(head);
  check(x, sizes, targets.targets);
  require(!head.bias.is_defined(), "linear_cross_entropy: a head with a bias");

  Backend& backend = tape.backend();
  const std::int64_t rows = x.rows();
  const std::int64_t chunk = std::min(rows, chunk_rows(sizes.out));
  Loss loss;
  loss.value = tape.make_variable({1}, DType::kF32);
  const bool training = tape.is_recording();
  const Tensor logits = tape.make({chunk, sizes.out}, DType::kF32);
  const bool narrow = training && x.dtype() != DType::kF32;
  const Tensor dlogits = narrow ? tape.make(logits.shape(), x.dtype()) : logits;
  const Tensor dx = training ? tape.make(x.shape(), x.dtype()) : Tensor();
  const Tensor losses = tape.make({std::max<std::int64_t>(chunk, 1)}, DType::kF32);
  Gradients::OfParameter dw;
  if (training) {
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
    backend.gemm({.a = matrix_of(x_rows), .b = weight_in_out(head), .d = matrix_of(logits_rows)});
    const auto row_losses = losses.as<float>().first(static_cast<std::size_t>(n));
    backend.cross_entropy(
        {.logits = logits_rows,
         .targets = targets.targets.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(n)),
         .scale = targets.scale,
         .dlogits = training ? dlogits_rows : Tensor(),
         .losses = row_losses});
    for (const float row_loss : row_losses) {
      loss.sum += static_cast<double>(row_loss);
    }
    if (training) {
      const Tensor dx_rows = dx.reshaped({rows, sizes.in}).slice(begin, n);
      backend.gemm({.a = matrix_of(dlogits_rows), .b = transposed(weight_in_out(head)), .d = matrix_of(dx_rows)});
      backend.gemm(weight_gradient(head, x_rows, dlogits_rows, dw.value, dw.accumulate || begin > 0));
    }
  }
  loss.count = std::ranges::count_if(targets.targets, [](std::int32_t target) { return target >= 0; });
  *loss.value.data<float>() = static_cast<float>(loss.sum * static_cast<double>(targets.scale));

  tape.record({&head.weight}, [x, dx, value = loss.value](Gradients& gradients) {
    [[maybe_unused]] const Tensor one = gradients.take(value);
    assert(*one.data<float>() == 1.0F);
    gradients.add(x, dx);
  });
  return loss;
}

}  // namespace lockstep
