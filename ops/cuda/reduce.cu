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

void sums_of_squares(std::span<const float> values, double* block_sums, cudaStream_t stream) {
  const std::size_t blocks = squares_blocks(values.size());
  if (blocks > 0) {
    squares_kernel<<<static_cast<unsigned>(blocks), kSquaresThreads, 0, stream>>>(
        values.data(), static_cast<std::int64_t>(values.size()), block_sums);
    check_launch("sums of squares");
  }
}

}  // namespace lockstep::cuda
