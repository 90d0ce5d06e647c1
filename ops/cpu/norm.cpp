#include "ops/cpu/norm.h"

#include <cmath>

#include "ops/cpu/reduce.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/norm.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.
#include <hwy/highway.h>

#include "ops/cpu/dispatch.h"
#include "ops/cpu/random-inl.h"
#include "ops/cpu/scratch.h"
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lockstep::cpu::HWY_NAMESPACE {
namespace {

template <typename T>
void add_branch(std::size_t columns, const T* x, const T* branch, T* sum) {
  sweep(columns, [&](std::size_t i, auto extent) LOCKSTEP_LAMBDA {
    store(hn::Add(load(x + i, extent), load(branch + i, extent)), sum + i, extent);
  });
}

template <typename T>
void add_dropped_branch(DropoutFactors& factors, std::uint64_t first, std::size_t columns, const T* x, const T* branch,
                        T* sum) {
  for (std::size_t done = 0; done < columns; done += kFactorPiece) {
    const std::size_t piece = std::min(kFactorPiece, columns - done);
    const float* factor = factors.of(first + done, piece);
    sweep(piece, [&](std::size_t j, auto extent) LOCKSTEP_LAMBDA {
      const std::size_t i = done + j;
      const Float dropped = hn::Mul(load(branch + i, extent), load(factor + j, extent));
      store(hn::Add(load(x + i, extent), dropped), sum + i, extent);
    });
  }
}

template <typename T>
float mean_of(std::size_t columns, const T* x) {
  Accumulator sum(0);
  sweep_groups(columns, [&](std::size_t i, auto group, auto extent)
                            LOCKSTEP_LAMBDA { sum[group] = hn::Add(sum[group], load(x + i, extent)); });
  return sum_of(sum) / static_cast<float>(columns);
}

// The mean of (x - center)^2.
template <typename T>
float mean_square_around(float center, std::size_t columns, const T* x) {
  Accumulator sum(0);
  sweep_groups(columns, [&](std::size_t i, auto group, auto extent) LOCKSTEP_LAMBDA {
    Float difference = hn::Sub(load(x + i, extent), set(center));
    if constexpr (std::is_same_v<decltype(extent), Part>) {
      difference = hn::IfThenElseZero(hn::FirstN(kFloat, extent.size), difference);
    }
    sum[group] = hn::MulAdd(difference, difference, sum[group]);
  });
  return sum_of(sum) / static_cast<float>(columns);
}

template <typename T>
void normalize(float mean, float rstd, std::size_t columns, const T* x, const T* gain, const T* bias, T* y) {
  const Float center = set(mean);
  const Float scale = set(rstd);
  if (bias == nullptr) {
    sweep(columns, [&](std::size_t i, auto extent) LOCKSTEP_LAMBDA {
      const Float normal = hn::Mul(hn::Sub(load(x + i, extent), center), scale);
      store(hn::Mul(normal, load(gain + i, extent)), y + i, extent);
    });
  } else {
    sweep(columns, [&](std::size_t i, auto extent) LOCKSTEP_LAMBDA {
      const Float normal = hn::Mul(hn::Sub(load(x + i, extent), center), scale);
      store(hn::MulAdd(normal, load(gain + i, extent), load(bias + i, extent)), y + i, extent);
    });
  }
}

template <typename T>
const T* data_or_null(const Tensor& tensor) {
  return tensor.is_defined() ? tensor.data<T>() : nullptr;
}

template <typename T>
void forward_rows(const NormForward& norm, std::size_t begin, std::size_t rows) {
  const auto columns = static_cast<std::size_t>(norm.x.dim(-1));
  const T* gain = norm.gain.data<T>();
  const T* bias = data_or_null<T>(norm.bias);
  const T* branch = data_or_null<T>(norm.branch);
  DropoutFactors factors(norm.dropout);
  for (std::size_t row = begin; row < begin + rows; ++row) {
    const std::size_t first = row * columns;
    const T* x = norm.x.data<T>() + first;
    if (branch != nullptr) {
      T* sum = norm.sum.data<T>() + first;
      if (norm.dropout.probability > 0) {
        add_dropped_branch(factors, first, columns, x, branch + first, sum);
      } else {
        add_branch(columns, x, branch + first, sum);
      }
      x = sum;
    }
    float mean = 0;
    if (norm.kind == NormKind::kLayer) {
      mean = mean_of(columns, x);
      norm.mean.data<float>()[row] = mean;
    }
    const float rstd = 1.0F / std::sqrt(mean_square_around(mean, columns, x) + norm.epsilon);
    norm.rstd.data<float>()[row] = rstd;
    normalize(mean, rstd, columns, x, gain, bias, norm.y.data<T>() + first);
  }
}

void norm_forward_kernel(const NormForward& norm, ThreadPool& pool) {
  with_working_type(norm.x.dtype(), [&](auto type) {
    const Chunks chunks = chunks_of_rows(norm.x.rows(), norm.x.dim(-1));
    pool.parallel_for(chunks.count(), [&](std::size_t chunk) {
      forward_rows<decltype(type)>(norm, chunks.begin(chunk), chunks.size(chunk));
    });
  });
}

template <typename T>
struct BackwardRow {
  std::size_t columns;
  float mean;
  float rstd;
  const T* dy;
  const T* dsum;  // or null
  const T* sum;
  const T* gain;
  T* dx;
  float* dgain;
  float* dbias;  // or null
};

struct Means {
  float gradient = 0;            // of g = dy * gain; 0 for RMS norm, whose mean is no function of its input
  float gradient_by_normal = 0;  // of g * n, n being the normalised input
};

template <typename T>
Means means_of(const BackwardRow<T>& row) {
  Accumulator gradient(0);
  Accumulator product(0);
  const Float center = set(row.mean);
  const Float scale = set(row.rstd);
  sweep_groups(row.columns, [&](std::size_t i, auto group, auto extent) LOCKSTEP_LAMBDA {
    const Float g = hn::Mul(load(row.dy + i, extent), load(row.gain + i, extent));
    const Float normal = hn::Mul(hn::Sub(load(row.sum + i, extent), center), scale);
    gradient[group] = hn::Add(gradient[group], g);
    product[group] = hn::MulAdd(g, normal, product[group]);
  });
  const auto count = static_cast<float>(row.columns);
  return {sum_of(gradient) / count, sum_of(product) / count};
}

// dx = dsum + rstd (g - mean(g) - n mean(g n)); dgain += dy n; dbias += dy
template <typename T, bool kHasSum, bool kHasBias>
void backward_row(const BackwardRow<T>& row, const Means& means) {
  const Float center = set(row.mean);
  const Float scale = set(row.rstd);
  const Float mean_gradient = set(means.gradient);
  const Float mean_product = set(means.gradient_by_normal);
  sweep(row.columns, [&](std::size_t i, auto extent) LOCKSTEP_LAMBDA {
    const Float dy = load(row.dy + i, extent);
    const Float normal = hn::Mul(hn::Sub(load(row.sum + i, extent), center), scale);
    Float dx = hn::Sub(hn::Mul(dy, load(row.gain + i, extent)), mean_gradient);
    dx = hn::Mul(hn::NegMulAdd(normal, mean_product, dx), scale);
    if constexpr (kHasSum) {
      dx = hn::Add(dx, load(row.dsum + i, extent));
    }
    store(dx, row.dx + i, extent);
    store(hn::MulAdd(dy, normal, load(row.dgain + i, extent)), row.dgain + i, extent);
    if constexpr (kHasBias) {
      store(hn::Add(dy, load(row.dbias + i, extent)), row.dbias + i, extent);
    }
  });
}

template <typename T>
void backward_row(const BackwardRow<T>& row, const Means& means) {
  if (row.dsum != nullptr) {
    row.dbias != nullptr ? backward_row<T, true, true>(row, means) : backward_row<T, true, false>(row, means);
  } else {
    row.dbias != nullptr ? backward_row<T, false, true>(row, means) : backward_row<T, false, false>(row, means);
  }
}

// dgain and dbias receive the sums over these rows.
template <typename T>
void backward_rows(const NormBackward& norm, std::size_t begin, std::size_t rows, float* dgain, float* dbias) {
  const auto columns = static_cast<std::size_t>(norm.sum.dim(-1));
  const bool is_layer = norm.kind == NormKind::kLayer;
  std::fill_n(dgain, columns, 0.0F);
  if (dbias != nullptr) {
    std::fill_n(dbias, columns, 0.0F);
  }
  for (std::size_t r = begin; r < begin + rows; ++r) {
    const std::size_t first = r * columns;
    const BackwardRow<T> row{.columns = columns,
                             .mean = is_layer ? norm.mean.data<float>()[r] : 0.0F,
                             .rstd = norm.rstd.data<float>()[r],
                             .dy = norm.dy.data<T>() + first,
                             .dsum = norm.dsum.is_defined() ? norm.dsum.data<T>() + first : nullptr,
                             .sum = norm.sum.data<T>() + first,
                             .gain = norm.gain.data<T>(),
                             .dx = norm.dx.data<T>() + first,
                             .dgain = dgain,
                             .dbias = dbias};
    Means means = means_of(row);
    if (!is_layer) {
      means.gradient = 0;
    }
    backward_row(row, means);
  }
}

void norm_backward_kernel(const NormBackward& norm, ThreadPool& pool) {
  const auto columns = static_cast<std::size_t>(norm.sum.dim(-1));
  const Chunks blocks{static_cast<std::size_t>(norm.sum.rows()), kRowBlock};
  const bool has_bias = norm.dbias.is_defined();
  const std::size_t stride = has_bias ? 2 * columns : columns;  // of a block: dgain, then dbias
  const std::span<float> partial = scratch<float>(blocks.count() * stride);
  with_working_type(norm.sum.dtype(), [&](auto type) {
    pool.parallel_for(blocks.count(), [&](std::size_t block) {
      float* dgain = partial.data() + block * stride;
      backward_rows<decltype(type)>(norm, blocks.begin(block), blocks.size(block), dgain,
                                    has_bias ? dgain + columns : nullptr);
    });
  });
  add_blocks({partial.data(), blocks.count(), stride, norm.dgain.as<float>(), norm.accumulate_parameters}, pool);
  if (has_bias) {
    add_blocks({partial.data() + columns, blocks.count(), stride, norm.dbias.as<float>(), norm.accumulate_parameters},
               pool);
  }
}

}  // namespace
}  // namespace lockstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lockstep::cpu {

HWY_EXPORT(norm_forward_kernel);
HWY_EXPORT(norm_backward_kernel);

void norm_forward(const NormForward& norm, ThreadPool& pool) { HWY_DYNAMIC_DISPATCH(norm_forward_kernel)(norm, pool); }

void norm_backward(const NormBackward& norm, ThreadPool& pool) {
  HWY_DYNAMIC_DISPATCH(norm_backward_kernel)(norm, pool);
}

}  // namespace lockstep::cpu
#endif
