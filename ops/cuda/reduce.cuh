// Sums down the columns of a matrix, in an order that its shape fixes: blocks of rows, each added up by eight threads a
// column whose sums are added in order, and then the blocks in order.
#pragma once

#include <array>
#include <type_traits>

#include "ops/cuda/scratch.h"
#include "ops/cuda/vector.cuh"

namespace lockstep::cuda {

struct ColumnSums {
  std::int64_t rows = 0;
  int columns = 0;
  bool in_packs = false;    // what is read is aligned
  bool accumulate = false;  // add to the results instead of replacing them
};

inline constexpr int kSumRows = 8;  // rows that a block of threads adds at a time
inline constexpr std::int64_t kMostRowBlocks = 256;

// Terms::at<N>(row, column, terms) gives kSums values for each of N columns.
template <int N, typename Terms>
__global__ void column_sums_kernel(const __grid_constant__ Terms terms, std::int64_t rows, int columns,
                                   std::int64_t rows_per_block, float* partial) {
  constexpr int kSums = Terms::kSums;
  const int column = (static_cast<int>(blockIdx.x) * kWarp + static_cast<int>(threadIdx.x)) * N;
  const std::int64_t begin = std::int64_t{blockIdx.y} * rows_per_block;
  const std::int64_t end = begin + rows_per_block < rows ? begin + rows_per_block : rows;
  Values<N> sums[kSums] = {};
  if (column < columns) {
    for (std::int64_t row = begin + threadIdx.y; row < end; row += kSumRows) {
      Values<N> values[kSums];
      terms.template at<N>(row, column, values);
#pragma unroll
      for (int s = 0; s < kSums; ++s) {
#pragma unroll
        for (int k = 0; k < N; ++k) {
          sums[s].v[k] += values[s].v[k];
        }
      }
    }
  }
  __shared__ float shared[kSumRows][N][kWarp];
#pragma unroll
  for (int s = 0; s < kSums; ++s) {
    __syncthreads();
#pragma unroll
    for (int k = 0; k < N; ++k) {
      shared[threadIdx.y][k][threadIdx.x] = sums[s].v[k];
    }
    __syncthreads();
    // Thread row k adds column k of each pack.
    for (int k = static_cast<int>(threadIdx.y); k < N; k += kSumRows) {
      if (column + k < columns) {
        float sum = 0;
#pragma unroll
        for (int r = 0; r < kSumRows; ++r) {
          sum += shared[r][k][threadIdx.x];
        }
        partial[(std::int64_t{blockIdx.y} * kSums + s) * columns + column + k] = sum;
      }
    }
  }
}

template <int kSums>
struct SumTargets {
  float* target[kSums];
};

template <int kSums>
__global__ void add_row_blocks(const float* partial, int blocks, int columns, bool accumulate,
                               const __grid_constant__ SumTargets<kSums> targets) {
  const int column = static_cast<int>(blockIdx.x * kWarp + threadIdx.x);
  float* target = targets.target[blockIdx.y];
  if (target == nullptr) {
    return;
  }
  float sum = 0;
  if (column < columns) {
#pragma unroll 8
    for (int block = static_cast<int>(threadIdx.y); block < blocks; block += kSumRows) {
      sum += partial[(std::int64_t{block} * kSums + blockIdx.y) * columns + column];
    }
  }
  __shared__ float shared[kSumRows][kWarp];
  shared[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && column < columns) {
    sum = 0;
#pragma unroll
    for (int r = 0; r < kSumRows; ++r) {
      sum += shared[r][threadIdx.x];
    }
    target[column] = accumulate ? target[column] + sum : sum;
  }
}

// The last part of column_sums(): partial[block][sum][column] into the targets.
template <int kSums>
void add_partial_sums(const float* partial, std::int64_t blocks, const ColumnSums& args,
                      const SumTargets<kSums>& targets, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(divided_up(args.columns, kWarp)), kSums);
  launch("column sums", add_row_blocks<kSums>, {grid, dim3(kWarp, kSumRows)}, stream, partial, static_cast<int>(blocks),
         args.columns, args.accumulate, targets);
}

// targets[s] (f32; null: not wanted) becomes the sum of the s-th terms, or is added to.
template <typename Terms>
void column_sums(const Terms& terms, const ColumnSums& args, const SumTargets<Terms::kSums>& targets, Scratch& scratch,
                 cudaStream_t stream) {
  constexpr int kSums = Terms::kSums;
  if (args.columns == 0) {
    return;
  }
  const std::int64_t most = divided_up(args.rows, 8 * kSumRows);
  const std::int64_t blocks = most < kMostRowBlocks ? most : kMostRowBlocks;
  const std::int64_t rows_per_block = blocks == 0 ? 0 : divided_up(args.rows, blocks);
  float* partial = scratch.get<float>(static_cast<std::size_t>(blocks * kSums * args.columns + 1));
  if (blocks > 0) {
    const bool in_packs = args.in_packs && args.columns % kPack == 0;
    const auto width = static_cast<unsigned>(divided_up(args.columns, kWarp * (in_packs ? kPack : 1)));
    launch("column sums", in_packs ? column_sums_kernel<kPack, Terms> : column_sums_kernel<1, Terms>,
           {dim3(width, static_cast<unsigned>(blocks)), dim3(kWarp, kSumRows)}, stream, terms, args.rows, args.columns,
           rows_per_block, partial);
  }
  add_partial_sums(partial, blocks, args, targets, stream);
}

}  // namespace lockstep::cuda
