// How tensors and weights are seen as operands of a matrix product.
#pragma once

#include "base/error.h"
#include "ops/functions.h"

namespace lockstep {

// x[N, C] as N x C.
[[nodiscard]] inline Matrix matrix_of(const Tensor& x) {
  const std::int64_t columns = x.dim(-1);
  return {x.data(), x.dtype(), x.rows(), columns, columns, false};
}

// The first `columns` of each of its rows.
[[nodiscard]] inline Matrix first_columns(const Tensor& x, std::int64_t columns) {
  Matrix matrix = matrix_of(x);
  matrix.columns = columns;
  return matrix;
}

// Columns [begin, begin + columns) of x[N, C].
[[nodiscard]] inline Matrix columns_of(const Tensor& x, std::int64_t begin, std::int64_t columns) {
  Matrix matrix = first_columns(x, columns);
  matrix.data = static_cast<std::byte*>(x.data()) + static_cast<std::size_t>(begin) * size_of(x.dtype());
  return matrix;
}

[[nodiscard]] inline Matrix transposed(Matrix matrix) {
  matrix.transposed = !matrix.transposed;
  return matrix;
}

struct WeightSizes {
  std::int64_t in = 0;
  std::int64_t out = 0;
};
[[nodiscard]] inline WeightSizes sizes_of(const Linear& layer) {
  require(layer.weight.shape().rank() == 2, "linear: weight {}, expected two dimensions", layer.weight.shape());
  const bool in_out = layer.layout == WeightLayout::kInOut;
  return {layer.weight.dim(in_out ? 0 : 1), layer.weight.dim(in_out ? 1 : 0)};
}

// The layer with its weight in memory: a packed one is unpacked into what make(shape, dtype) gives.
template <typename Make>
[[nodiscard]] Linear unpacked(Backend& backend, const Linear& layer, const Make& make) {
  if (layer.weight.packed.packing == Packing::kNone) {
    return layer;
  }
  Linear plain = layer;
  plain.weight = make(layer.weight.shape(), layer.weight.dtype());
  backend.unpack(layer.weight.packed, plain.weight);
  return plain;
}

// The weight as w[in, out], whichever way it lies in memory.
[[nodiscard]] inline Matrix weight_in_out(const Linear& layer) {
  const Matrix matrix = matrix_of(layer.weight);
  return layer.layout == WeightLayout::kInOut ? matrix : transposed(matrix);
}

// dw = x^T dy, laid out as the weight is.
[[nodiscard]] inline Gemm weight_gradient(const Linear& layer, const Matrix& x, const Matrix& dy, const Tensor& dw,
                                          bool accumulate) {
  const bool in_out = layer.layout == WeightLayout::kInOut;
  return {.a = transposed(in_out ? x : dy),
          .b = in_out ? dy : x,
          .d = matrix_of(dw),
          .bias = nullptr,
          .accumulate = accumulate};
}

}  // namespace lockstep
