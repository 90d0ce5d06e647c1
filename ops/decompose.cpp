#include <array>

#include "base/error.h"
#include "ops/functions.h"
#include "ops/matrices.h"

namespace lockstep {
namespace {

// Columns of y that are scaled, or that lie between those.
struct Columns {
  std::int64_t begin = 0;
  std::int64_t count = 0;
  std::int64_t place = -1;  // of what is scaled: in the magnitudes
};

template <typename Work>
void for_all_columns(const LowRank& adapters, std::int64_t width, const Work& work) {
  std::int64_t next = 0;
  std::int64_t place = 0;
  for (const LowRank::Part& part : adapters.parts) {
    if (part.columns == 0) {
      continue;
    }
    if (part.begin > next) {
      work(Columns{next, part.begin - next, -1});
    }
    work(Columns{part.begin, part.columns, place});
    next = part.begin + part.columns;
    place += part.columns;
  }
  if (next < width) {
    work(Columns{next, width - next, -1});
  }
}

// But for its y.
ColumnScale scale_of(const Tensor& x, const Columns& columns, const Tensor& magnitude, const Tensor& norms,
                     const Tensor& bias) {
  ColumnScale scale;
  scale.x = columns_of(x, columns.begin, columns.count);
  if (columns.place >= 0) {
    scale.magnitude = magnitude.slice(columns.place, columns.count);
    scale.norms = norms.slice(columns.place, columns.count);
  }
  scale.bias = bias.is_defined() ? bias.slice(columns.begin, columns.count) : Tensor();
  return scale;
}

}  // namespace

Tensor norms_of(Tape& tape, const Linear& layer, const LowRank& adapters) {
  Backend& backend = tape.backend();
  const Linear plain =
      unpacked(backend, layer, [&](const Shape& shape, DType dtype) { return tape.make(shape, dtype); });
  const Tensor merged = tape.make(plain.weight.shape(), DType::kF32);
  backend.convert(plain.weight.buffer(), merged.buffer());
  const Tensor scaled = tape.make(adapters.b.shape(), adapters.b.dtype());
  backend.scale(adapters.b, adapters.scale, scaled);
  const Tensor norms = tape.make({adapters.b.dim(0)}, plain.weight.dtype());
  const std::int64_t rank = adapters.b.dim(1);
  const bool in_out = layer.layout == WeightLayout::kInOut;
  std::int64_t index = 0;
  for_all_columns(adapters, sizes_of(plain).out, [&](const Columns& columns) {
    if (columns.place < 0) {
      return;
    }
    const Matrix a = matrix_of(adapters.a.slice(index * rank, rank));
    const Matrix b = matrix_of(scaled.slice(columns.place, columns.count));
    const Tensor of_part = norms.slice(columns.place, columns.count);
    if (in_out) {
      const Matrix weight = columns_of(merged, columns.begin, columns.count);
      backend.gemm({.a = transposed(a), .b = transposed(b), .d = weight, .accumulate = true});
      backend.row_norms(transposed(weight), of_part);
    } else {
      const Matrix weight = matrix_of(merged.slice(columns.begin, columns.count));
      backend.gemm({.a = b, .b = a, .d = weight, .accumulate = true});
      backend.row_norms(weight, of_part);
    }
    ++index;
  });
  return norms;
}

Tensor decompose(Tape& tape, const Tensor& x, const Decomposed& layer) {
  require(layer.magnitude.shape() == Shape{layer.adapters.b.dim(0)} && x.dim(-1) == sizes_of(layer.layer).out,
          "decompose: x {} and magnitudes {} do not fit b {}", x.shape(), layer.magnitude.shape(),
          layer.adapters.b.shape());
  const Tensor norms = norms_of(tape, layer.layer, layer.adapters);
  const Tensor& bias = layer.layer.bias;
  const Tensor y = tape.make_output(x.shape(), x.dtype(), {&x, &layer.magnitude, &bias});
  for_all_columns(layer.adapters, x.dim(-1), [&](const Columns& columns) {
    ColumnScale scale = scale_of(x, columns, layer.magnitude, norms, bias);
    scale.y = columns_of(y, columns.begin, columns.count);
    tape.backend().scale_columns(scale);
  });

  tape.record(y, {&layer.magnitude, &bias},
              [x, y = y.without_data(), norms, bias, magnitude = layer.magnitude,
               adapters = layer.adapters](Gradients& gradients) {
                Backend& kernels = gradients.backend();
                const Tensor dy = gradients.take(y);
                if (Tape::is_trained(bias)) {
                  const auto dbias = gradients.of_parameter(bias);
                  kernels.column_sum(dy, dbias.value, dbias.accumulate);
                }
                const Tensor dx = gradients.make_from(dy);
                if (dx.data() != dy.data()) {
                  kernels.convert(dy.buffer(), dx.buffer());
                }
                const auto dmagnitude = gradients.of_parameter(magnitude);
                for_all_columns(adapters, x.dim(-1), [&](const Columns& columns) {
                  if (columns.place >= 0) {
                    kernels.scale_columns_gradient({.scale = scale_of(x, columns, magnitude, norms, Tensor()),
                                                    .dy = columns_of(dx, columns.begin, columns.count),
                                                    .dmagnitude = dmagnitude.value.slice(columns.place, columns.count),
                                                    .accumulate = dmagnitude.accumulate});
                  }
                });
                gradients.add(x, dx);
              });
  return y;
}

}  // namespace lockstep
