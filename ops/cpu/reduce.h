// Sums over rows and over everything. What they compute is said in ops/backend.h.
#pragma once

#include <span>

#include "base/thread_pool.h"
#include "ops/backend.h"

namespace lockstep::cpu {

// Rows whose sum is taken before blocks are added in order.
inline constexpr std::size_t kRowBlock = 32;

void column_sum(const Tensor& x, const Tensor& sums, bool accumulate, ThreadPool& pool);

void sums_of_squares(std::span<const float> values, std::span<double> block_sums, ThreadPool& pool);

// sums[c] = the sum over b of blocks[b * stride + c], in order; added to sums when `accumulate`.
struct BlockSums {
  const float* blocks = nullptr;
  std::size_t count = 0;   // of blocks
  std::size_t stride = 0;  // elements
  std::span<float> sums;
  bool accumulate = false;
};
void add_blocks(const BlockSums& args, ThreadPool& pool);

}  // namespace lockstep::cpu
