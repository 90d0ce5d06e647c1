#include "ops/cuda/matrices.h"

#include <algorithm>
#include <cassert>
#include <cmath>

#include "ops/cuda/vector.cuh"

namespace lockstep::cuda {
namespace {

struct Frequencies {
  float inverse[kWidestRotaryHead / 2];
};

// One thread for each pair (i, i + half) of a head; sines and cosines of large angles keep their place in sincosf.
template <typename T>
__global__ void rope_kernel(T* rows, std::int64_t count, std::int64_t row_width, int heads, int half,
                            const std::int32_t* places, std::int64_t rows_per_sequence, std::int64_t first_position,
                            bool inverse, const __grid_constant__ Frequencies frequencies) {
  const std::int64_t index = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index >= count) {
    return;
  }
  const int i = static_cast<int>(index % half);
  const std::int64_t row = index / half / heads;
  const int head = static_cast<int>(index / half % heads);
  const std::int64_t place = places != nullptr ? places[row] : row % rows_per_sequence;
  const auto position = static_cast<float>(first_position + place);
  float sine = 0;
  float cosine = 0;
  sincosf((inverse ? -position : position) * frequencies.inverse[i], &sine, &cosine);
  T* a = rows + row * row_width + std::int64_t{head} * 2 * half + i;
  T* b = a + half;
  const float x = to_float(*a);
  const float y = to_float(*b);
  *a = from_float<T>(fmaf(-y, sine, x * cosine));
  *b = from_float<T>(fmaf(x, sine, y * cosine));
}

template <typename T, typename B>
__global__ void add_bias_kernel(T* d, std::int64_t rows, std::int64_t columns, std::int64_t stride, const B* bias) {
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < rows * columns) {
    T* element = d + i / columns * stride + i % columns;
    *element = from_float<T>(to_float(*element) + to_float(bias[i % columns]));
  }
}

// Passed to the kernel by value.
struct Nf4Levels {
  float level[16];
};

// A value a thread.
template <typename T>
__global__ void unpack_kernel(PackedWeight weight, const __grid_constant__ Nf4Levels nf4, std::int64_t count,
                              std::int64_t codes_begin, T* out) {
  __shared__ float levels[16];
  if (threadIdx.x < 16) {
    levels[threadIdx.x] = nf4.level[threadIdx.x];
  }
  __syncthreads();
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) {
    return;
  }
  const std::byte* const codes = weight.data + codes_begin;
  if (weight.packing == Packing::kQ8) {
    const float scale = __half2float(reinterpret_cast<const __half*>(weight.data)[i / 32]);
    out[i] = from_float<T>(static_cast<float>(reinterpret_cast<const std::int8_t*>(codes)[i]) * scale);
  } else {
    const float scale = reinterpret_cast<const float*>(weight.data)[i / 64];
    const auto byte = reinterpret_cast<const std::uint8_t*>(codes)[i / 2];
    out[i] = from_float<T>(levels[i % 2 == 0 ? byte & 15 : byte >> 4] * scale);
  }
}

constexpr int kNormThreads = 256;

// A block of threads for each row; element (row, i) lies at row * row_stride + i * stride.
template <typename T>
__global__ void row_norms_kernel(const float* x, std::int64_t row_stride, std::int64_t stride, std::int64_t count,
                                 T* norms) {
  const float* row = x + std::int64_t{blockIdx.x} * row_stride;
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < count; i += kNormThreads) {
    const auto value = static_cast<double>(row[i * stride]);
    sum = fma(value, value, sum);
  }
  sum = sum_over_block<kNormThreads>(sum);
  if (threadIdx.x == 0) {
    norms[blockIdx.x] = from_float<T>(static_cast<float>(sqrt(sum)));
  }
}

// `magnitude` and `bias` may be null.
template <typename T>
__global__ void scale_columns_kernel(const T* x, std::int64_t x_stride, T* y, std::int64_t y_stride,
                                     std::int64_t rows, int columns, const T* magnitude, const T* norms,
                                     const T* bias) {
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= rows * columns) {
    return;
  }
  const auto column = static_cast<int>(i % columns);
  float value = to_float(x[i / columns * x_stride + column]);
  if (magnitude != nullptr) {
    const float norm = to_float(norms[column]);
    value *= norm == 0.0F ? 1.0F : to_float(magnitude[column]) / norm;
  }
  y[i / columns * y_stride + column] = from_float<T>(bias == nullptr ? value : value + to_float(bias[column]));
}

constexpr int kThreads = 256;
unsigned blocks_for(std::int64_t threads) { return static_cast<unsigned>(divided_up(threads, kThreads)); }

}  // namespace

void rope(const Rope& rope, const std::int32_t* places, cudaStream_t stream) {
  const auto half = static_cast<int>(rope.head_dim / 2);
  assert(rope.head_dim <= kWidestRotaryHead);
  Frequencies frequencies{};
  std::copy_n(static_cast<const float*>(rope.inverse_frequency.data()), half, frequencies.inverse);
  const std::int64_t count = rope.rows.rows() * rope.heads * half;
  if (count == 0) {
    return;
  }
  with_working_type(rope.rows.dtype(), [&](auto type) {
    using T = decltype(type);
    launch("rotary embedding", rope_kernel<T>, {blocks_for(count), kThreads}, stream, pointer<T>(rope.rows.data()), count,
           rope.rows.dim(-1), static_cast<int>(rope.heads), half, places, rope.rows_per_sequence, rope.first_position,
           rope.inverse, frequencies);
  });
}

void add_bias(const Matrix& d, const void* bias, DType bias_dtype, cudaStream_t stream) {
  const std::int64_t count = d.rows * d.columns;
  if (count == 0) {
    return;
  }
  with_working_types(d.dtype, bias_dtype, [&](auto type, auto bias_type) {
    using T = decltype(type);
    using B = decltype(bias_type);
    launch("bias", add_bias_kernel<T, B>, {blocks_for(count), kThreads}, stream, pointer<T>(d.data), d.rows, d.columns,
           d.stride, static_cast<const B*>(bias));
  });
}

void unpack(const PackedWeight& weight, const Tensor& out, cudaStream_t stream) {
  Nf4Levels levels{};
  std::copy(kNf4Levels.begin(), kNf4Levels.end(), levels.level);
  const auto begin =
      static_cast<std::int64_t>(codes_offset(weight.packing, static_cast<std::size_t>(out.count())));
  with_working_type(out.dtype(), [&](auto type) {
    using T = decltype(type);
    launch("unpacking weights", unpack_kernel<T>, {blocks_for(out.count()), kThreads}, stream, weight, levels, out.count(),
           begin, pointer<T>(out.data()));
  });
}

void row_norms(const Matrix& x, const Tensor& norms, cudaStream_t stream) {
  if (norms.count() == 0) {
    return;
  }
  with_working_type(norms.dtype(), [&](auto type) {
    using T = decltype(type);
    launch("norms of rows", row_norms_kernel<T>, {static_cast<unsigned>(norms.count()), kNormThreads}, stream,
           pointer<float>(x.data), x.transposed ? 1 : x.stride, x.transposed ? x.stride : 1,
           x.transposed ? x.rows : x.columns, pointer<T>(norms.data()));
  });
}

void scale_columns(const ColumnScale& scale, cudaStream_t stream) {
  const std::int64_t count = scale.y.rows * scale.y.columns;
  if (count == 0) {
    return;
  }
  with_working_type(scale.y.dtype, [&](auto type) {
    using T = decltype(type);
    const auto values_of = [](const Tensor& tensor) {
      return tensor.is_defined() ? pointer<T>(tensor.data()) : nullptr;
    };
    launch("scaling columns", scale_columns_kernel<T>, {blocks_for(count), kThreads}, stream, pointer<T>(scale.x.data),
           scale.x.stride, pointer<T>(scale.y.data), scale.y.stride, scale.y.rows, static_cast<int>(scale.y.columns),
           values_of(scale.magnitude), values_of(scale.norms), values_of(scale.bias));
  });
}

}  // namespace lockstep::cuda
