// Tiles of rows of bf16 or f16 in shared memory, and the products of a warp with them: what attention_tensor.cu is made
// of.
//
// A block has four warps. A warp has kBlocks times 16 rows of the result, its own from first to last: rows
// 16 kBlocks w + 16 i + {g, g + 8} belong to block i of lane 4 g + t of warp w. float[kBlocks][n / 8][4] is a matrix of
// n columns of these rows, in pieces of mma.cuh's D: [i][j][e] is row g + 8 (e / 2), column 8 j + 2 t + e % 2.
#pragma once

#include "ops/cuda/mma.cuh"
#include "ops/cuda/vector.cuh"

namespace lockstep::cuda {

inline constexpr int kTileWarps = 4;
inline constexpr int kTileThreads = kTileWarps * kWarp;

__device__ inline int warp_of_tile() { return static_cast<int>(threadIdx.x) / kWarp; }
__device__ inline int lane_of_tile() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ inline int lane_row() { return lane_of_tile() / 4; }         // g
__device__ inline int lane_column() { return lane_of_tile() % 4 * 2; }  // 2 t

// Eight elements, 16 bytes, between the end of a row and the start of the next: eight rows that are read at once then
// lie in different banks, kDim being a multiple of 32.
template <typename T, int kDim, int kRows>
struct alignas(16) Tile {
  T values[kRows][kDim + kPack];
};

// Starts copying `valid` rows of `width` elements, a multiple of 8; the rest of the tile becomes zero.
template <typename T, int kDim, int kRows>
__device__ void start_loading(Tile<T, kDim, kRows>& tile, const T* from, std::int64_t row_stride, int valid,
                              int width) {
  constexpr int kAcross = kDim % (8 * kPack) == 0 ? 8 : 4;  // threads side by side: 128 or 64 bytes of a row
  constexpr int kDown = kTileThreads / kAcross;
  static_assert(kRows % kDown == 0);
  const int first_row = static_cast<int>(threadIdx.x) / kAcross;
  const int first_column = static_cast<int>(threadIdx.x) % kAcross * kPack;
  from += first_row * row_stride + first_column;
#pragma unroll
  for (int r = 0; r < kRows; r += kDown) {
    const int row = first_row + r;
#pragma unroll
    for (int c = 0; c < kDim; c += kAcross * kPack) {
      start_copy<16>(&tile.values[row][first_column + c], from + c, row < valid && first_column + c < width);
    }
    from += kDown * row_stride;
  }
}

// Both, rounded to T.
template <typename T>
__device__ unsigned pair_of(float first, float second);
template <>
__device__ inline unsigned pair_of<__nv_bfloat16>(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return reinterpret_cast<const unsigned&>(pair);
}
template <>
__device__ inline unsigned pair_of<__half>(float first, float second) {
  const __half2 pair = __floats2half2_rn(first, second);
  return reinterpret_cast<const unsigned&>(pair);
}

// products = the warp's rows of a times the rows of b.
template <typename T, int kDim, int kBlocks, int kRows>
__device__ void multiply_rows(const Tile<T, kDim, kTileWarps * 16 * kBlocks>& a, const Tile<T, kDim, kRows>& b,
                              float (&products)[kBlocks][kRows / 8][4]) {
  const int lane = lane_of_tile();
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
    for (int j = 0; j < kRows / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        products[i][j][e] = 0;
      }
    }
  }
#pragma unroll
  for (int d = 0; d < kDim; d += 16) {
    unsigned left[kBlocks][4];
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      load_matrices(left[i], &a.values[(warp_of_tile() * kBlocks + i) * 16 + lane % 16][d + lane / 16 * 8]);
    }
#pragma unroll
    for (int j = 0; j < kRows / 16; ++j) {
      unsigned right[4];  // of columns 16 j and 16 j + 8
      load_matrices(right, &b.values[16 * j + lane / 16 * 8 + lane % 8][d + lane / 8 % 2 * 8]);
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        add_product<T>(products[i][2 * j], left[i], right[0], right[1]);
        add_product<T>(products[i][2 * j + 1], left[i], right[2], right[3]);
      }
    }
  }
}

// A result, rounded to T, as the first factor of a product: two of its pieces side by side are one of that.
template <typename T, int kBlocks, int kColumns>
struct Factor {
  unsigned pieces[kBlocks][kColumns / 16][4];

  Factor() = default;
  __device__ explicit Factor(const float (&result)[kBlocks][kColumns / 8][4]) {
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
      for (int k = 0; k < kColumns / 16; ++k) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const float(&piece)[4] = result[i][2 * k + r / 2];
          pieces[i][k][r] = pair_of<T>(piece[r % 2 * 2], piece[r % 2 * 2 + 1]);
        }
      }
    }
  }
};

// sums += weights times the tile.
template <typename T, int kDim, int kBlocks, int kRows>
__device__ void add_product(const Factor<T, kBlocks, kRows>& weights, const Tile<T, kDim, kRows>& tile,
                            float (&sums)[kBlocks][kDim / 8][4]) {
  const int lane = lane_of_tile();
#pragma unroll
  for (int k = 0; k < kRows / 16; ++k) {
#pragma unroll
    for (int n = 0; n < kDim / 16; ++n) {
      unsigned right[4];  // of columns 16 n and 16 n + 8
      load_transposed_matrices(right, &tile.values[16 * k + lane % 16][16 * n + lane / 16 * 8]);
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        add_product<T>(sums[i][2 * n], weights.pieces[i][k], right[0], right[1]);
        add_product<T>(sums[i][2 * n + 1], weights.pieces[i][k], right[2], right[3]);
      }
    }
  }
}

// Writes `scale` (of block i and half h of its rows) times the warp's rows of `sums` to `to`, where row 0 of the block
// of threads is; `valid` of those rows and `width` of their elements exist. The warp's rows of `tile` serve on the way:
// rows are written as a whole.
template <typename T, int kDim, int kBlocks, typename Scale>
__device__ void store_rows(const float (&sums)[kBlocks][kDim / 8][4], const Scale& scale,
                           Tile<T, kDim, kTileWarps * 16 * kBlocks>& tile, T* to, std::int64_t row_stride, int valid,
                           int width) {
  constexpr int kRows = 16 * kBlocks;
  constexpr int kPacks = kDim / kPack;
  const int first_row = warp_of_tile() * kRows;
  __syncwarp();  // who reads the tile has read it
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float by = scale(i, h);
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        *reinterpret_cast<unsigned*>(&tile.values[first_row + 16 * i + 8 * h + lane_row()][8 * n + lane_column()]) =
            pair_of<T>(sums[i][n][2 * h] * by, sums[i][n][2 * h + 1] * by);
      }
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = lane_of_tile(); i < kRows * kPacks; i += kWarp) {
    const int row = first_row + i / kPacks;
    const int column = i % kPacks * kPack;
    if (row < valid && column < width) {
      *reinterpret_cast<uint4*>(to + row * row_stride + column) =
          *reinterpret_cast<const uint4*>(&tile.values[row][column]);
    }
  }
}

}  // namespace lockstep::cuda
