// Tiles of bf16 rows in shared memory, and the products of a warp with them: what attention_tensor.cu is made of.
//
// A block has four warps. A warp has kBlocks times 16 rows of the result, its own from first to last: rows
// 16 kBlocks w + 16 i + {g, g + 8} belong to block i of lane 4 g + t of warp w. float[kBlocks][n / 8][4] is a matrix of n
// columns of these rows, in pieces of mma.cuh's D: [i][j][e] is row g + 8 (e / 2), column 8 j + 2 t + e % 2.
#pragma once

#include <cuda_bf16.h>

#include "ops/cuda/mma.cuh"
#include "ops/cuda/vector.cuh"

namespace lockstep::cuda {

inline constexpr int kTileWarps = 4;
inline constexpr int kTileThreads = kTileWarps * kWarp;

__device__ inline int warp_of_tile() { return static_cast<int>(threadIdx.x) / kWarp; }
__device__ inline int lane_of_tile() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ inline int lane_row() { return lane_of_tile() / 4; }           // g
__device__ inline int lane_column() { return lane_of_tile() % 4 * 2; }    // 2 t

// Eight elements, 16 bytes, between the end of a row and the start of the next: eight rows that are read at once then
// lie in different banks, kDim being a multiple of 32.
template <int kDim, int kRows>
struct alignas(16) Tile {
  __nv_bfloat16 values[kRows][kDim + kPack];
};

// Starts copying `valid` rows of `width` elements, a multiple of 8; the rest of the tile becomes zero.
template <int kDim, int kRows>
__device__ void start_loading(Tile<kDim, kRows>& tile, const __nv_bfloat16* from, std::int64_t row_stride, int valid,
                              int width) {
  constexpr int kPacks = kDim / kPack;
#pragma unroll
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kPacks; i += kTileThreads) {
    const int row = i / kPacks;
    const int column = i % kPacks * kPack;
    const bool is_there = row < valid && column < width;
    start_copy<16>(&tile.values[row][column], is_there ? from + row * row_stride + column : from, is_there);
  }
}

__device__ inline unsigned pair_of(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return reinterpret_cast<const unsigned&>(pair);
}

// products = the warp's rows of a times the rows of b.
template <int kDim, int kBlocks, int kRows>
__device__ void multiply_rows(const Tile<kDim, kTileWarps * 16 * kBlocks>& a, const Tile<kDim, kRows>& b,
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
        add_product(products[i][2 * j], left[i], right[0], right[1]);
        add_product(products[i][2 * j + 1], left[i], right[2], right[3]);
      }
    }
  }
}

// sums += weights, rounded to bf16, times the tile.
template <int kDim, int kBlocks, int kRows>
__device__ void add_weighted(const float (&weights)[kBlocks][kRows / 8][4], const Tile<kDim, kRows>& tile,
                             float (&sums)[kBlocks][kDim / 8][4]) {
  const int lane = lane_of_tile();
#pragma unroll
  for (int k = 0; k < kRows / 16; ++k) {
    // Two pieces of a result side by side are one of a first factor.
    unsigned left[kBlocks][4];
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const float(&piece)[4] = weights[i][2 * k + r / 2];
        left[i][r] = pair_of(piece[r % 2 * 2], piece[r % 2 * 2 + 1]);
      }
    }
#pragma unroll
    for (int n = 0; n < kDim / 16; ++n) {
      unsigned right[4];  // of columns 16 n and 16 n + 8
      load_transposed_matrices(right, &tile.values[16 * k + lane % 16][16 * n + lane / 16 * 8]);
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        add_product(sums[i][2 * n], left[i], right[0], right[1]);
        add_product(sums[i][2 * n + 1], left[i], right[2], right[3]);
      }
    }
  }
}

// Writes `factor` (of block i and half h of its rows) times the warp's rows of `sums` to `to`, where row 0 of the block
// of threads is; `valid` of those rows and `width` of their elements exist. The warp's rows of `tile` serve on the way:
// rows are written as a whole.
template <int kDim, int kBlocks, typename Factor>
__device__ void store_rows(const float (&sums)[kBlocks][kDim / 8][4], const Factor& factor,
                           Tile<kDim, kTileWarps * 16 * kBlocks>& tile, __nv_bfloat16* to, std::int64_t row_stride,
                           int valid, int width) {
  constexpr int kRows = 16 * kBlocks;
  constexpr int kPacks = kDim / kPack;
  const int first_row = warp_of_tile() * kRows;
  __syncwarp();  // who reads the tile has read it
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float by = factor(i, h);
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        *reinterpret_cast<unsigned*>(&tile.values[first_row + 16 * i + 8 * h + lane_row()][8 * n + lane_column()]) =
            pair_of(sums[i][n][2 * h] * by, sums[i][n][2 * h + 1] * by);
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
