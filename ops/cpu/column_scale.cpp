#include "ops/cpu/column_scale.h"

#include <cmath>

#include "ops/cpu/reduce.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/column_scale.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.
#include <hwy/highway.h>

#include "ops/cpu/dispatch.h"
#include "ops/cpu/scratch.h"
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lockstep::cpu::HWY_NAMESPACE {
namespace {

// squares[r] of rows [begin, begin + count): one row after another, or down the columns of what is transposed.
void squares_of_rows(const Matrix& x, std::size_t begin, std::size_t count, float* squares) {
  const auto* data = static_cast<const float*>(x.data);
  const auto stride = static_cast<std::size_t>(x.stride);
  if (!x.transposed) {
    const auto columns = static_cast<std::size_t>(x.columns);
    for (std::size_t r = 0; r < count; ++r) {
      const float* row = data + (begin + r) * stride;
      Accumulator sums(0);
      sweep_groups(columns, [&](std::size_t i, auto group, auto extent) LOCKSTEP_LAMBDA {
        const Float values = load(row + i, extent);
        sums[group] = hn::MulAdd(values, values, sums[group]);
      });
      squares[r] = sum_of(sums);
    }
    return;
  }
  std::fill_n(squares, count, 0.0F);
  for (std::int64_t row = 0; row < x.rows; ++row) {
    const float* values = data + static_cast<std::size_t>(row) * stride + begin;
    sweep(count, [&](std::size_t i, auto extent) LOCKSTEP_LAMBDA {
      const Float value = load(values + i, extent);
      store(hn::MulAdd(value, value, load(squares + i, extent)), squares + i, extent);
    });
  }
}

void row_norms_kernel(const Matrix& x, const Tensor& norms, ThreadPool& pool) {
  constexpr std::size_t kRows = 64;
  const Chunks chunks{static_cast<std::size_t>(norms.count()), kRows};
  with_working_type(norms.dtype(), [&](auto type) {
    using T = decltype(type);
    pool.parallel_for(chunks.count(), [&](std::size_t chunk) {
      float squares[kRows];
      squares_of_rows(x, chunks.begin(chunk), chunks.size(chunk), squares);
      for (std::size_t r = 0; r < chunks.size(chunk); ++r) {
        norms.data<T>()[chunks.begin(chunk) + r] = T(std::sqrt(squares[r]));
      }
    });
  });
}

// By column, magnitude / norm, and what has no length stays as it is.
template <typename T>
void factors_of(const ColumnScale& scale, std::span<float> factors) {
  for (std::size_t c = 0; c < factors.size(); ++c) {
    const auto norm = static_cast<float>(scale.norms.data<T>()[c]);
    factors[c] = norm == 0 ? 1.0F : static_cast<float>(scale.magnitude.data<T>()[c]) / norm;
  }
}

template <typename T>
T* row_of(const Matrix& matrix, std::size_t row) {
  return static_cast<T*>(matrix.data) + row * static_cast<std::size_t>(matrix.stride);
}

// y = x * factor + bias, either of which may be null.
template <typename T>
void scale_row(const T* x, T* y, std::size_t columns, const float* factors, const T* bias) {
  sweep(columns, [&](std::size_t i, auto extent) LOCKSTEP_LAMBDA {
    Float value = load(x + i, extent);
    value = factors != nullptr ? hn::Mul(value, load(factors + i, extent)) : value;
    store(bias != nullptr ? hn::Add(value, load(bias + i, extent)) : value, y + i, extent);
  });
}

void scale_columns_kernel(const ColumnScale& scale, ThreadPool& pool) {
  const auto columns = static_cast<std::size_t>(scale.y.columns);
  const Chunks chunks = chunks_of_rows(scale.y.rows, scale.y.columns);
  with_working_type(scale.y.dtype, [&](auto type) {
    using T = decltype(type);
    const std::span<float> memory = scratch<float>(columns);
    const float* factors = nullptr;
    if (scale.magnitude.is_defined()) {
      factors_of<T>(scale, memory);
      factors = memory.data();
    }
    const T* bias = scale.bias.is_defined() ? scale.bias.data<T>() : nullptr;
    pool.parallel_for(chunks.count(), [&](std::size_t chunk) {
      for (std::size_t row = chunks.begin(chunk); row < chunks.begin(chunk) + chunks.size(chunk); ++row) {
        scale_row(row_of<T>(scale.x, row), row_of<T>(scale.y, row), columns, factors, bias);
      }
    });
  });
}

void scale_columns_gradient_kernel(const ColumnScaleGradient& gradient, ThreadPool& pool) {
  const ColumnScale& scale = gradient.scale;
  const auto columns = static_cast<std::size_t>(scale.x.columns);
  const Chunks blocks{static_cast<std::size_t>(scale.x.rows), kRowBlock};
  // The blocks' sums, and behind them what dy and the sums are multiplied by.
  const std::span<float> memory = scratch<float>((blocks.count() + 2) * columns);
  const std::span<float> factors = memory.subspan(blocks.count() * columns, columns);
  const std::span<float> inverse = memory.subspan((blocks.count() + 1) * columns, columns);
  with_working_type(scale.x.dtype, [&](auto type) {
    using T = decltype(type);
    factors_of<T>(scale, factors);
    for (std::size_t c = 0; c < columns; ++c) {
      const auto norm = static_cast<float>(scale.norms.data<T>()[c]);
      inverse[c] = norm == 0 ? 0.0F : 1.0F / norm;
    }
    pool.parallel_for(blocks.count(), [&](std::size_t block) {
      float* sums = memory.data() + block * columns;
      std::fill_n(sums, columns, 0.0F);
      for (std::size_t row = blocks.begin(block); row < blocks.begin(block) + blocks.size(block); ++row) {
        const T* x = row_of<T>(scale.x, row);
        T* dy = row_of<T>(gradient.dy, row);
        sweep(columns, [&](std::size_t i, auto extent) LOCKSTEP_LAMBDA {
          const Float slope = load(dy + i, extent);
          const Float length = hn::Mul(load(x + i, extent), load(inverse.data() + i, extent));
          store(hn::MulAdd(slope, length, load(sums + i, extent)), sums + i, extent);
          store(hn::Mul(slope, load(factors.data() + i, extent)), dy + i, extent);
        });
      }
    });
  });
  add_blocks({memory.data(), blocks.count(), columns, gradient.dmagnitude.as<float>(), gradient.accumulate}, pool);
}

}  // namespace
}  // namespace lockstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lockstep::cpu {

HWY_EXPORT(row_norms_kernel);
HWY_EXPORT(scale_columns_kernel);
HWY_EXPORT(scale_columns_gradient_kernel);

void row_norms(const Matrix& x, const Tensor& norms, ThreadPool& pool) {
  HWY_DYNAMIC_DISPATCH(row_norms_kernel)(x, norms, pool);
}

void scale_columns(const ColumnScale& scale, ThreadPool& pool) {
  HWY_DYNAMIC_DISPATCH(scale_columns_kernel)(scale, pool);
}

void scale_columns_gradient(const ColumnScaleGradient& gradient, ThreadPool& pool) {
  HWY_DYNAMIC_DISPATCH(scale_columns_gradient_kernel)(gradient, pool);
}

}  // namespace lockstep::cpu
#endif
