// The kernels of attention on the ordinary cores: attention.cu and attention_backward.cu share tiles in shared memory,
// products of tiles, and the choice of a width.
#pragma once

#include <type_traits>

#include "ops/cuda/attention_arguments.cuh"

namespace lockstep::cuda::ordinary_cores {

// 16 x 16 threads. Of a tile of scores, thread (y, x) has rows y + 16 i and columns x + 16 j.
inline constexpr int kSide = 16;
inline constexpr int kThreads = kSide * kSide;

// A tile in shared memory, transposed: [kDim][kRows + 1], zero beyond `valid` rows and head_dim columns. The odd
// distance keeps threads that walk down a column or along a row in different banks.
template <int kDim, int kRows>
struct Tile {
  float values[kDim][kRows + 1];

  template <typename T>
  __device__ void load(const T* from, std::int64_t row_stride, int valid, int head_dim) {
    for (int i = static_cast<int>(threadIdx.x); i < kDim * kRows; i += kThreads) {
      const int row = i / kDim;
      const int d = i % kDim;
      values[d][row] = row < valid && d < head_dim ? to_float(from[row * row_stride + d]) : 0.0F;
    }
  }
};

// scores[i][j] = the dot product of row y + 16 i of a and row x + 16 j of b.
template <int kDim, int kA, int kB>
__device__ void dot_rows(const Tile<kDim, kA>& a, const Tile<kDim, kB>& b, float (&scores)[kA / kSide][kB / kSide]) {
  const int x = static_cast<int>(threadIdx.x) % kSide;
  const int y = static_cast<int>(threadIdx.x) / kSide;
#pragma unroll
  for (int i = 0; i < kA / kSide; ++i) {
#pragma unroll
    for (int j = 0; j < kB / kSide; ++j) {
      scores[i][j] = 0;
    }
  }
#pragma unroll 4
  for (int d = 0; d < kDim; ++d) {
    float left[kA / kSide];
    float right[kB / kSide];
#pragma unroll
    for (int i = 0; i < kA / kSide; ++i) {
      left[i] = a.values[d][y + kSide * i];
    }
#pragma unroll
    for (int j = 0; j < kB / kSide; ++j) {
      right[j] = b.values[d][x + kSide * j];
    }
#pragma unroll
    for (int i = 0; i < kA / kSide; ++i) {
#pragma unroll
      for (int j = 0; j < kB / kSide; ++j) {
        scores[i][j] = fmaf(left[i], right[j], scores[i][j]);
      }
    }
  }
}

// A tile of weights (probabilities or their gradients) in shared memory, [kRows][kColumns + 1].
template <int kRows, int kColumns>
struct Weights {
  float values[kRows][kColumns + 1];

  __device__ void store(const float (&own)[kRows / kSide][kColumns / kSide]) {
    const int x = static_cast<int>(threadIdx.x) % kSide;
    const int y = static_cast<int>(threadIdx.x) / kSide;
#pragma unroll
    for (int i = 0; i < kRows / kSide; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns / kSide; ++j) {
        values[y + kSide * i][x + kSide * j] = own[i][j];
      }
    }
  }
};

// sums[i][c] += weights (row y + 16 i) times column x + 16 c of the tile.
template <int kDim, int kRows, int kColumns>
__device__ void add_weighted(const Weights<kRows, kColumns>& weights, const Tile<kDim, kColumns>& tile,
                             float (&sums)[kRows / kSide][kDim / kSide]) {
  const int x = static_cast<int>(threadIdx.x) % kSide;
  const int y = static_cast<int>(threadIdx.x) / kSide;
#pragma unroll 2
  for (int k = 0; k < kColumns; ++k) {
    float weight[kRows / kSide];
#pragma unroll
    for (int i = 0; i < kRows / kSide; ++i) {
      weight[i] = weights.values[y + kSide * i][k];
    }
#pragma unroll
    for (int c = 0; c < kDim / kSide; ++c) {
      const float value = tile.values[x + kSide * c][k];
#pragma unroll
      for (int i = 0; i < kRows / kSide; ++i) {
        sums[i][c] = fmaf(weight[i], value, sums[i][c]);
      }
    }
  }
}

// The same with the weights transposed: sums[j][c] += weights (column y + 16 j) times column x + 16 c of the tile.
template <int kDim, int kRows, int kColumns>
__device__ void add_weighted_transposed(const Weights<kRows, kColumns>& weights, const Tile<kDim, kRows>& tile,
                                        float (&sums)[kColumns / kSide][kDim / kSide]) {
  const int x = static_cast<int>(threadIdx.x) % kSide;
  const int y = static_cast<int>(threadIdx.x) / kSide;
#pragma unroll 2
  for (int r = 0; r < kRows; ++r) {
    float weight[kColumns / kSide];
#pragma unroll
    for (int j = 0; j < kColumns / kSide; ++j) {
      weight[j] = weights.values[r][y + kSide * j];
    }
#pragma unroll
    for (int c = 0; c < kDim / kSide; ++c) {
      const float value = tile.values[x + kSide * c][r];
#pragma unroll
      for (int j = 0; j < kColumns / kSide; ++j) {
        sums[j][c] = fmaf(weight[j], value, sums[j][c]);
      }
    }
  }
}

template <int kDim, int kRows, typename T>
__device__ void store_rows(const float (&sums)[kRows / kSide][kDim / kSide], T* to, std::int64_t row_stride, int valid,
                           int head_dim) {
  const int x = static_cast<int>(threadIdx.x) % kSide;
  const int y = static_cast<int>(threadIdx.x) / kSide;
#pragma unroll
  for (int i = 0; i < kRows / kSide; ++i) {
    const int row = y + kSide * i;
#pragma unroll
    for (int c = 0; c < kDim / kSide; ++c) {
      const int d = x + kSide * c;
      if (row < valid && d < head_dim) {
        to[row * row_stride + d] = from_float<T>(sums[i][c]);
      }
    }
  }
}

// Calls f with an element and the width that heads are padded to. Narrow heads of bf16 and f16 are mostly the tensor
// cores' (attention_tensor.h): there is no width of their own for the rest.
template <typename F>
void with_variant(DType dtype, std::int64_t head_dim, const F& f) {
  with_working_type(dtype, [&](auto element) {
    constexpr int kLeast = std::is_same_v<decltype(element), float> ? 32 : 64;
    if (head_dim <= kLeast) {
      f(element, std::integral_constant<int, kLeast>{});
    } else if (head_dim <= 64) {
      f(element, std::integral_constant<int, 64>{});
    } else if (head_dim <= 128) {
      f(element, std::integral_constant<int, 128>{});
    } else {
      f(element, std::integral_constant<int, 256>{});
    }
  });
}

}  // namespace lockstep::cuda::ordinary_cores
