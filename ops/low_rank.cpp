#include "base/error.h"
#include "ops/functions.h"
#include "ops/matrices.h"

namespace lockstep {
namespace {

// What belongs to one part: the columns of y and of the inner values, and rows of b.
struct PartViews {
  Matrix outer;
  Matrix inner;
  Matrix b;
};

template <typename Work>
void for_each_part(const LowRank& layer, const Tensor& outer, const Tensor& inner, const Tensor& b, Work&& work) {
  const std::int64_t rank = layer.b.dim(1);
  std::int64_t index = 0;
  std::int64_t row = 0;
  for (const LowRank::Part& part : layer.parts) {
    if (part.columns > 0) {
      work(PartViews{columns_of(outer, part.begin, part.columns), columns_of(inner, index * rank, rank),
                     matrix_of(b.slice(row, part.columns))});
      row += part.columns;
      ++index;
    }
  }
}

void check(const Tensor& x, const Tensor& y, const LowRank& layer) {
  const bool matrices = layer.a.shape().rank() == 2 && layer.b.shape().rank() == 2;
  require(
      matrices && x.shape().rank() > 0 && y.shape().rank() > 0 && x.rows() == y.rows() && x.dim(-1) == layer.a.dim(1),
      "add_low_rank: x {} and y {} do not fit a {} and b {}", x.shape(), y.shape(), layer.a.shape(), layer.b.shape());
  std::int64_t parts = 0;
  std::int64_t rows = 0;
  std::int64_t end = 0;
  for (const LowRank::Part& part : layer.parts) {
    if (part.columns > 0) {
      require(part.begin >= end && part.begin + part.columns <= y.dim(-1),
              "add_low_rank: columns {} to {} of y {}, after {}", part.begin, part.begin + part.columns, y.shape(),
              end);
      end = part.begin + part.columns;
      rows += part.columns;
      ++parts;
    }
  }
  require(parts > 0 && layer.a.dim(0) == parts * layer.b.dim(1) && layer.b.dim(0) == rows,
          "add_low_rank: a {} and b {} do not fit {} parts of {} columns in all", layer.a.shape(), layer.b.shape(),
          parts, rows);
}

Tensor dropped(Backend& backend, const Dropout& dropout, const Tensor& x, const Tensor& memory) {
  if (dropout.probability == 0) {
    return x;
  }
  backend.dropout(dropout, x, memory);
  return memory;
}

}  // namespace

// With u = dropout(x) and h = scale u a^T:    y += h b^T      dh = scale dy b      du = dh a
//   da = dh^T u      db = dy^T h      (each part with its own columns of y and h and rows of b)
// u is computed again in the backward pass.
Tensor add_low_rank(Tape& tape, const Tensor& x, const Tensor& y, const LowRank& layer) {
  check(x, y, layer);

  Backend& backend = tape.backend();
  const bool drops = layer.dropout.probability > 0;
  const Tensor h = tape.make({x.rows(), layer.a.dim(0)}, x.dtype());
  {
    const Tensor u = dropped(backend, layer.dropout, x, drops ? tape.make(x.shape(), x.dtype()) : Tensor());
    backend.gemm({.a = matrix_of(u), .b = transposed(matrix_of(layer.a)), .d = matrix_of(h)});
  }
  backend.scale(h, layer.scale, h);
  for_each_part(layer, y, h, layer.b, [&](const PartViews& part) {
    backend.gemm({.a = part.inner, .b = transposed(part.b), .d = part.outer, .accumulate = true});
  });
  Tensor sum = y;
  sum.variable = tape.new_variable({&x, &y, &layer.a, &layer.b});

  tape.record(
      sum, {&layer.a, &layer.b},
      [x, h, layer, drops, before = y.without_data(), sum = sum.without_data()](Gradients& gradients) {
        Backend& kernels = gradients.backend();
        const Tensor dy = gradients.take(sum);
        const Tensor dh = gradients.make(h.shape(), h.dtype());
        const auto db = gradients.of_parameter(layer.b);
        for_each_part(layer, dy, h, db.value, [&](const PartViews& part) {
          kernels.gemm({.a = transposed(part.outer), .b = part.inner, .d = part.b, .accumulate = db.accumulate});
        });
        for_each_part(layer, dy, dh, layer.b,
                      [&](const PartViews& part) { kernels.gemm({.a = part.outer, .b = part.b, .d = part.inner}); });
        kernels.scale(dh, layer.scale, dh);
        const Tensor memory = drops || Gradients::wants(x) ? gradients.make(x.shape(), x.dtype()) : Tensor();
        const Tensor u = dropped(kernels, layer.dropout, x, memory);
        const auto da = gradients.of_parameter(layer.a);
        kernels.gemm(
            {.a = transposed(matrix_of(dh)), .b = matrix_of(u), .d = matrix_of(da.value), .accumulate = da.accumulate});
        if (Gradients::wants(x)) {
          kernels.gemm({.a = matrix_of(dh), .b = matrix_of(layer.a), .d = matrix_of(memory)});
          if (drops) {
            kernels.dropout(layer.dropout, memory, memory);
          }
          gradients.add(x, memory);
        }
        gradients.add(before, dy);
      });
  return sum;
}

}  // namespace lockstep
