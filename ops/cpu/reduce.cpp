#include "ops/cpu/reduce.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/reduce.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.
#include <hwy/highway.h>

#include "ops/cpu/dispatch.h"
#include "ops/cpu/scratch.h"
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lockstep::cpu::HWY_NAMESPACE {
namespace {

// sum[c] = the sum of `rows` rows of x: pairs of pairs of rows, one after the other, then the rest singly.
template <typename T>
void sum_rows(std::size_t rows, std::size_t columns, const T* x, float* sum) {
  std::fill_n(sum, columns, 0.0F);
  std::size_t row = 0;
  for (; row + 4 <= rows; row += 4) {
    const T* four = x + row * columns;
    sweep(columns, [&](std::size_t i, auto extent) LOCKSTEP_LAMBDA {
      const Float upper = hn::Add(load(four + i, extent), load(four + columns + i, extent));
      const Float lower = hn::Add(load(four + 2 * columns + i, extent), load(four + 3 * columns + i, extent));
      store(hn::Add(load(sum + i, extent), hn::Add(upper, lower)), sum + i, extent);
    });
  }
  for (; row < rows; ++row) {
    const T* one = x + row * columns;
    sweep(columns, [&](std::size_t i, auto extent) LOCKSTEP_LAMBDA {
      store(hn::Add(load(sum + i, extent), load(one + i, extent)), sum + i, extent);
    });
  }
}

void column_sum_kernel(const Tensor& x, const Tensor& sums, bool accumulate, ThreadPool& pool) {
  const auto columns = static_cast<std::size_t>(x.dim(-1));
  const Chunks blocks{static_cast<std::size_t>(x.rows()), kRowBlock};
  const std::span<float> partial = scratch<float>(blocks.count() * columns);
  with_working_type(x.dtype(), [&](auto type) {
    using T = decltype(type);
    pool.parallel_for(blocks.count(), [&](std::size_t block) {
      const T* rows = x.data<T>() + blocks.begin(block) * columns;
      sum_rows(blocks.size(block), columns, rows, partial.data() + block * columns);
    });
  });
  add_blocks({partial.data(), blocks.count(), columns, sums.as<float>(), accumulate}, pool);
}

void add_block_columns(const BlockSums& args, std::size_t begin, std::size_t size) {
  sweep(size, [&](std::size_t i, auto extent) LOCKSTEP_LAMBDA {
    const float* block = args.blocks + begin + i;
    Float sum = set(0);
    for (std::size_t b = 0; b < args.count; ++b) {
      sum = hn::Add(sum, load(block + b * args.stride, extent));
    }
    float* out = args.sums.data() + begin + i;
    store(args.accumulate ? hn::Add(load(out, extent), sum) : sum, out, extent);
  });
}

void add_blocks_kernel(const BlockSums& args, ThreadPool& pool) {
  constexpr std::size_t kColumns = 64;
  const Chunks chunks{args.sums.size(), kColumns};
  pool.parallel_for(chunks.count(),
                    [&](std::size_t chunk) { add_block_columns(args, chunks.begin(chunk), chunks.size(chunk)); });
}

// The squares of floats are exact in f64. 16 lanes, element i in lane i % 16, halved until one is left.
double sum_of_squares_block(const float* values, std::size_t count) {
  using DoubleTag = hn::CappedTag<double, 8>;
  using NarrowTag = hn::Rebind<float, DoubleTag>;
  const DoubleTag d;
  constexpr std::size_t kSumDoubles = 16;
  constexpr std::size_t kDoubles = hn::MaxLanes(DoubleTag());
  constexpr std::size_t kVectors = kSumDoubles / kDoubles;
  hn::Vec<DoubleTag> sums[kVectors];
  for (auto& sum : sums) {
    sum = hn::Zero(d);
  }
  const auto add_sixteen = [&](const float* from) LOCKSTEP_LAMBDA {
    for (std::size_t v = 0; v < kVectors; ++v) {
      const auto wide = hn::PromoteTo(d, hn::LoadU(NarrowTag(), from + v * kDoubles));
      sums[v] = hn::MulAdd(wide, wide, sums[v]);
    }
  };
  std::size_t i = 0;
  for (; i + kSumDoubles <= count; i += kSumDoubles) {
    add_sixteen(values + i);
  }
  if (i < count) {
    float last[kSumDoubles] = {};
    std::copy(values + i, values + count, last);
    add_sixteen(last);
  }
  double lanes[kSumDoubles];
  for (std::size_t v = 0; v < kVectors; ++v) {
    hn::StoreU(sums[v], d, lanes + v * kDoubles);
  }
  for (std::size_t half = kSumDoubles / 2; half > 0; half /= 2) {
    for (std::size_t lane = 0; lane < half; ++lane) {
      lanes[lane] += lanes[lane + half];
    }
  }
  return lanes[0];
}

void sums_of_squares_kernel(std::span<const float> values, std::span<double> block_sums, ThreadPool& pool) {
  const Chunks blocks{values.size(), kSquaresBlock};
  // Several blocks to a chunk, so that starting a chunk does not show.
  constexpr std::size_t kBlocksPerChunk = kChunkElements / kSquaresBlock;
  const Chunks chunks{blocks.count(), kBlocksPerChunk};
  pool.parallel_for(chunks.count(), [&](std::size_t chunk) {
    for (std::size_t b = chunks.begin(chunk); b < chunks.begin(chunk) + chunks.size(chunk); ++b) {
      block_sums[b] = sum_of_squares_block(values.data() + blocks.begin(b), blocks.size(b));
    }
  });
}

}  // namespace
}  // namespace lockstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lockstep::cpu {

HWY_EXPORT(column_sum_kernel);
HWY_EXPORT(add_blocks_kernel);
HWY_EXPORT(sums_of_squares_kernel);

void column_sum(const Tensor& x, const Tensor& sums, bool accumulate, ThreadPool& pool) {
  HWY_DYNAMIC_DISPATCH(column_sum_kernel)(x, sums, accumulate, pool);
}

void add_blocks(const BlockSums& args, ThreadPool& pool) { HWY_DYNAMIC_DISPATCH(add_blocks_kernel)(args, pool); }

void sums_of_squares(std::span<const float> values, std::span<double> block_sums, ThreadPool& pool) {
  assert(block_sums.size() == squares_blocks(values.size()));
  HWY_DYNAMIC_DISPATCH(sums_of_squares_kernel)(values, block_sums, pool);
}

}  // namespace lockstep::cpu
#endif
