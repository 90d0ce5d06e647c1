#include "ops/cuda/matrices.h"
#include "ops/cuda/reduce.cuh"
#include "ops/cuda/reduce.h"

namespace lockstep::cuda {
namespace {

template <typename T>
struct Elements {
  static constexpr int kSums = 1;
  const T* x;
  int columns;
  template <int N>
  __device__ void at(std::int64_t row, int column, Values<N> (&terms)[kSums]) const {
    terms[0] = load<N>(x + row * columns + column);
  }
};

template <typename T>
struct MagnitudeTerms {
  static constexpr int kSums = 1;
  const T* x;
  std::int64_t x_stride;
  const T* dy;
  std::int64_t dy_stride;
  const T* norms;
  template <int N>
  __device__ void at(std::int64_t row, int column, Values<N> (&terms)[kSums]) const {
    const Values<N> value = load<N>(x + row * x_stride + column);
    const Values<N> slope = load<N>(dy + row * dy_stride + column);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float norm = to_float(norms[column + k]);
      terms[0].v[k] = norm == 0.0F ? 0.0F : slope.v[k] * (value.v[k] * (1.0F / norm));
    }
  }
};

constexpr int kSquaresThreads = 256;

// The squares of floats are exact in f64.
__global__ void squares_kernel(const float* values, std::int64_t count, double* block_sums) {
  const std::int64_t begin = std::int64_t{blockIdx.x} * static_cast<std::int64_t>(kSquaresBlock);
  double sum = 0;
#pragma unroll
  for (int k = 0; k < static_cast<int>(kSquaresBlock) / kSquaresThreads; ++k) {
    const std::int64_t i = begin + k * kSquaresThreads + threadIdx.x;
    const double value = i < count ? static_cast<double>(values[i]) : 0.0;
    sum = fma(value, value, sum);
  }
  sum = sum_over_block<kSquaresThreads>(sum);
  if (threadIdx.x == 0) {
    block_sums[blockIdx.x] = sum;
  }
}

}  // namespace

void column_sum(const Tensor& x, const Tensor& sums, bool accumulate, Scratch& scratch, cudaStream_t stream) {
  with_working_type(x.dtype(), [&](auto type) {
    using T = decltype(type);
    const auto columns = static_cast<int>(x.dim(-1));
    column_sums(Elements<T>{pointer<T>(x.data()), columns}, {x.rows(), columns, are_aligned({x.data()}), accumulate},
                {pointer<float>(sums.data())}, scratch, stream);
  });
}

// The sums come first: dy is scaled in place.
void scale_columns_gradient(const ColumnScaleGradient& gradient, Scratch& scratch, cudaStream_t stream) {
  ColumnScale scale = gradient.scale;
  with_working_type(scale.x.dtype, [&](auto type) {
    using T = decltype(type);
    const MagnitudeTerms<T> terms{pointer<T>(scale.x.data), scale.x.stride, pointer<T>(gradient.dy.data),
                                  gradient.dy.stride, pointer<T>(scale.norms.data())};
    column_sums(terms, {scale.x.rows, static_cast<int>(scale.x.columns), false, gradient.accumulate},
                {pointer<float>(gradient.dmagnitude.data())}, scratch, stream);
  });
  scale.x = scale.y = gradient.dy;
  scale_columns(scale, stream);
}

void sums_of_squares(std::span<const float> values, double* block_sums, cudaStream_t stream) {
  const std::size_t blocks = squares_blocks(values.size());
  if (blocks > 0) {
    launch("sums of squares", squares_kernel, {static_cast<unsigned>(blocks), kSquaresThreads}, stream, values.data(),
           static_cast<std::int64_t>(values.size()), block_sums);
  }
}

}  // namespace lockstep::cuda
