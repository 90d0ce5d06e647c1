#include "ops/cpu/softmax.h"

#include <cmath>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/softmax.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.
#include <hwy/highway.h>

#include "ops/cpu/dispatch.h"
#include "ops/cpu/random-inl.h"
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lockstep::cpu::HWY_NAMESPACE {
namespace {

std::size_t visible_of(std::int64_t first_length, std::int64_t row, std::int64_t columns) {
  return static_cast<std::size_t>(std::clamp<std::int64_t>(first_length + row, 0, columns));
}

float max_of_first(const float* scores, std::size_t count) {
  Accumulator largest(-std::numeric_limits<float>::infinity());
  sweep_groups(count, [&](std::size_t i, auto group, auto extent) LOCKSTEP_LAMBDA {
    Float value = load(scores + i, extent);
    if constexpr (std::is_same_v<decltype(extent), Part>) {
      value = hn::IfThenElse(hn::FirstN(kFloat, extent.size), value, largest[group]);
    }
    largest[group] = hn::Max(largest[group], value);
  });
  return max_of(largest);
}

// scores = exp(scale * (scores - largest)), exactly 1 for the largest however large it is; returns their sum.
float exponentiate(float* scores, std::size_t count, float scale, float largest) {
  Accumulator sum(0);
  sweep_groups(count, [&](std::size_t i, auto group, auto extent) LOCKSTEP_LAMBDA {
    const Float value = exp(hn::Mul(hn::Sub(load(scores + i, extent), set(largest)), set(scale)));
    store(value, scores + i, extent);
    if constexpr (std::is_same_v<decltype(extent), Part>) {
      sum[group] = hn::Add(sum[group], hn::IfThenElseZero(hn::FirstN(kFloat, extent.size), value));
    } else {
      sum[group] = hn::Add(sum[group], value);
    }
  });
  return sum_of(sum);
}

// to = from * factor, times dropout's factors when there are any; 0 from `count` to `columns`.
template <typename T>
void scale_into(const float* from, std::size_t count, std::size_t columns, float factor, DropoutFactors* factors,
                std::uint64_t first, T* to) {
  if (factors == nullptr) {
    sweep(count, [&](std::size_t i, auto extent)
                     LOCKSTEP_LAMBDA { store(hn::Mul(load(from + i, extent), set(factor)), to + i, extent); });
  } else {
    for (std::size_t done = 0; done < count; done += kFactorPiece) {
      const std::size_t piece = std::min(kFactorPiece, count - done);
      const float* keep = factors->of(first + done, piece);
      sweep(piece, [&](std::size_t j, auto extent) LOCKSTEP_LAMBDA {
        const Float p = hn::Mul(load(from + done + j, extent), set(factor));
        store(hn::Mul(p, load(keep + j, extent)), to + done + j, extent);
      });
    }
  }
  std::memset(static_cast<void*>(to + count), 0, (columns - count) * sizeof(T));
}

template <typename T>
void softmax_rows_of(const SoftmaxRows& args) {
  DropoutFactors factors(args.dropout.dropout);
  DropoutFactors* used_factors = args.dropout.dropout.probability > 0 ? &factors : nullptr;
  for (std::int64_t row = 0; row < args.rows; ++row) {
    float* scores = args.scores + row * args.score_stride;
    T* probabilities = static_cast<T*>(args.probabilities) + row * args.probability_stride;
    const std::size_t count = visible_of(args.first_length, row, args.columns);
    const float largest = max_of_first(scores, count);
    const float sum = exponentiate(scores, count, args.scale, largest);
    const std::uint64_t first = args.dropout.first + static_cast<std::uint64_t>(row * args.dropout.row_stride);
    scale_into(scores, count, static_cast<std::size_t>(args.columns), 1.0F / sum, used_factors, first, probabilities);
    if (args.log_sum_exp != nullptr) {
      args.log_sum_exp[row] = static_cast<float>(static_cast<double>(args.scale) * static_cast<double>(largest) +
                                                 std::log(static_cast<double>(sum)));
    }
  }
}

template <typename T>
struct BackwardRow {
  std::size_t count;
  const float* scores;
  const float* dprobabilities;
  float scale;
  float log_sum_exp;
  float delta;
  T* probabilities;
  T* dscores;
};

// Elements [begin, begin + size) of a row; keep(j, extent) is what dropout multiplies element begin + j by.
template <typename T, typename Keep>
HWY_INLINE void backward_piece(const BackwardRow<T>& row, std::size_t begin, std::size_t size, const Keep& keep) {
  const Float scale = set(row.scale);
  const Float log_sum_exp = set(row.log_sum_exp);
  const Float delta = set(row.delta);
  sweep(size, [&](std::size_t j, auto extent) LOCKSTEP_LAMBDA {
    const std::size_t i = begin + j;
    const Float p = exp(hn::MulSub(load(row.scores + i, extent), scale, log_sum_exp));
    const Float dp = load(row.dprobabilities + i, extent);
    const Float difference = keep.gradient(dp, delta, j, extent);
    store(keep.probability(p, j, extent), row.probabilities + i, extent);
    store(hn::Mul(hn::Mul(scale, p), difference), row.dscores + i, extent);
  });
}

struct KeepAll {
  template <typename Extent>
  HWY_INLINE Float probability(Float p, std::size_t, Extent) const {
    return p;
  }
  template <typename Extent>
  HWY_INLINE Float gradient(Float dp, Float delta, std::size_t, Extent) const {
    return hn::Sub(dp, delta);
  }
};

struct KeepSome {
  const float* factors;
  template <typename Extent>
  HWY_INLINE Float probability(Float p, std::size_t j, Extent extent) const {
    return hn::Mul(p, load(factors + j, extent));
  }
  template <typename Extent>
  HWY_INLINE Float gradient(Float dp, Float delta, std::size_t j, Extent extent) const {
    return hn::MulSub(dp, load(factors + j, extent), delta);
  }
};

template <typename T>
void softmax_backward_rows_of(const SoftmaxBackwardRows& args) {
  DropoutFactors factors(args.dropout.dropout);
  for (std::int64_t r = 0; r < args.rows; ++r) {
    const BackwardRow<T> row{.count = visible_of(args.first_length, r, args.columns),
                             .scores = args.scores + r * args.score_stride,
                             .dprobabilities = args.dprobabilities + r * args.dprobability_stride,
                             .scale = args.scale,
                             .log_sum_exp = args.log_sum_exp[r],
                             .delta = args.delta[r],
                             .probabilities = static_cast<T*>(args.probabilities) + r * args.probability_stride,
                             .dscores = static_cast<T*>(args.dscores) + r * args.dscore_stride};
    if (args.dropout.dropout.probability > 0) {
      const std::uint64_t first = args.dropout.first + static_cast<std::uint64_t>(r * args.dropout.row_stride);
      for (std::size_t done = 0; done < row.count; done += kFactorPiece) {
        const std::size_t piece = std::min(kFactorPiece, row.count - done);
        backward_piece(row, done, piece, KeepSome{factors.of(first + done, piece)});
      }
    } else {
      backward_piece(row, 0, row.count, KeepAll());
    }
    const std::size_t masked = (static_cast<std::size_t>(args.columns) - row.count) * sizeof(T);
    std::memset(static_cast<void*>(row.probabilities + row.count), 0, masked);
    std::memset(static_cast<void*>(row.dscores + row.count), 0, masked);
  }
}

template <typename T>
void row_dots_of(const RowDots& args) {
  for (std::int64_t row = 0; row < args.rows; ++row) {
    const T* a = static_cast<const T*>(args.a) + row * args.a_stride;
    const T* b = static_cast<const T*>(args.b) + row * args.b_stride;
    Accumulator sum(0);
    sweep_groups(static_cast<std::size_t>(args.columns), [&](std::size_t i, auto group, auto extent) LOCKSTEP_LAMBDA {
      sum[group] = hn::MulAdd(load(a + i, extent), load(b + i, extent), sum[group]);
    });
    args.dots[row] = sum_of(sum);
  }
}

void softmax_rows_kernel(const SoftmaxRows& args) {
  with_working_type(args.dtype, [&](auto type) { softmax_rows_of<decltype(type)>(args); });
}

void softmax_backward_rows_kernel(const SoftmaxBackwardRows& args) {
  with_working_type(args.dtype, [&](auto type) { softmax_backward_rows_of<decltype(type)>(args); });
}

void row_dots_kernel(const RowDots& args) {
  with_working_type(args.dtype, [&](auto type) { row_dots_of<decltype(type)>(args); });
}

}  // namespace
}  // namespace lockstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lockstep::cpu {

HWY_EXPORT(softmax_rows_kernel);
HWY_EXPORT(softmax_backward_rows_kernel);
HWY_EXPORT(row_dots_kernel);

void softmax_rows(const SoftmaxRows& args) { HWY_DYNAMIC_DISPATCH(softmax_rows_kernel)(args); }

void softmax_backward_rows(const SoftmaxBackwardRows& args) {
  HWY_DYNAMIC_DISPATCH(softmax_backward_rows_kernel)(args);
}

void row_dots(const RowDots& args) { HWY_DYNAMIC_DISPATCH(row_dots_kernel)(args); }

}  // namespace lockstep::cpu
#endif
