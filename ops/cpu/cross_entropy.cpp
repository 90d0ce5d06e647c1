#include "ops/cpu/cross_entropy.h"

#include <cmath>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/cross_entropy.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.
#include <hwy/highway.h>

#include "ops/cpu/dispatch.h"
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lockstep::cpu::HWY_NAMESPACE {
namespace {

float max_logit(const float* logits, std::size_t count) {
  Accumulator largest(-std::numeric_limits<float>::infinity());
  sweep_groups(count, [&](std::size_t i, auto group, auto extent) LOCKSTEP_LAMBDA {
    Float value = load(logits + i, extent);
    if constexpr (std::is_same_v<decltype(extent), Part>) {
      value = hn::IfThenElse(hn::FirstN(kFloat, extent.size), value, largest[group]);
    }
    largest[group] = hn::Max(largest[group], value);
  });
  return max_of(largest);
}

float sum_of_exponentials(const float* logits, std::size_t count, float largest) {
  Accumulator sum(0);
  sweep_groups(count, [&](std::size_t i, auto group, auto extent) LOCKSTEP_LAMBDA {
    Float value = exp(hn::Sub(load(logits + i, extent), set(largest)));
    if constexpr (std::is_same_v<decltype(extent), Part>) {
      value = hn::IfThenElseZero(hn::FirstN(kFloat, extent.size), value);
    }
    sum[group] = hn::Add(sum[group], value);
  });
  return sum_of(sum);
}

// The first that is `value`: one of them is.
std::size_t first_equal(const float* logits, std::size_t count, float value) {
  const Float sought = set(value);
  const auto place_in = [&](std::size_t i, auto extent) LOCKSTEP_LAMBDA {
    return hn::FindFirstTrue(kFloat, hn::Eq(load(logits + i, extent), sought));
  };
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    if (const auto lane = place_in(i, Whole()); lane >= 0) {
      return i + static_cast<std::size_t>(lane);
    }
  }
  return i + static_cast<std::size_t>(place_in(i, Part{count - i}));
}

struct RowSoftmax {
  float largest;
  float sum;
};

// dlogits = scale * (exp(logits - largest) / sum - onehot(target)); dlogits may be logits.
template <typename T>
void gradient_of_row(const float* logits, std::size_t count, const RowSoftmax& softmax, std::size_t target, float scale,
                     T* dlogits) {
  const Float factor = set(scale / softmax.sum);
  const Float largest = set(softmax.largest);
  // The target's own element is computed apart, before its logit is overwritten.
  const Float at_target = hn::MulSub(exp(hn::Sub(set(logits[target]), largest)), factor, set(scale));
  sweep(count, [&](std::size_t i, auto extent) LOCKSTEP_LAMBDA {
    store(hn::Mul(exp(hn::Sub(load(logits + i, extent), largest)), factor), dlogits + i, extent);
  });
  store(at_target, dlogits + target, Part{1});
}

template <typename T>
void cross_entropy_row(const CrossEntropy& args, std::size_t row) {
  const auto vocabulary = static_cast<std::size_t>(args.vocabulary);
  const auto stride = static_cast<std::size_t>(args.logits.dim(-1));
  const float* logits = args.logits.data<float>() + row * stride;
  T* dlogits = args.dlogits.is_defined() ? args.dlogits.data<T>() + row * stride : nullptr;
  const std::int32_t target = args.targets[row];
  std::int32_t* const likeliest = args.likeliest.is_defined() ? args.likeliest.data<std::int32_t>() + row : nullptr;
  if (likeliest != nullptr) {
    *likeliest = -1;
  }
  if (target < 0) {
    args.losses.data<float>()[row] = 0;
    if (dlogits != nullptr) {
      std::memset(static_cast<void*>(dlogits), 0, vocabulary * sizeof(T));
    }
    return;
  }
  const float largest = max_logit(logits, vocabulary);
  const float sum = sum_of_exponentials(logits, vocabulary, largest);
  const auto index = static_cast<std::size_t>(target);
  const double distance = static_cast<double>(largest) - static_cast<double>(logits[index]);
  args.losses.data<float>()[row] = static_cast<float>(std::log(static_cast<double>(sum)) + distance);
  if (likeliest != nullptr && !std::isnan(sum)) {
    *likeliest = static_cast<std::int32_t>(first_equal(logits, vocabulary, largest));
  }
  if (dlogits != nullptr) {
    gradient_of_row(logits, vocabulary, {largest, sum}, index, args.scale, dlogits);
  }
}

void cross_entropy_kernel(const CrossEntropy& args, ThreadPool& pool) {
  const Chunks chunks = chunks_of_rows(args.logits.rows(), args.logits.dim(-1));
  const DType dtype = args.dlogits.is_defined() ? args.dlogits.dtype() : DType::kF32;
  with_working_type(dtype, [&](auto type) {
    pool.parallel_for(chunks.count(), [&](std::size_t chunk) {
      for (std::size_t row = chunks.begin(chunk); row < chunks.begin(chunk) + chunks.size(chunk); ++row) {
        cross_entropy_row<decltype(type)>(args, row);
      }
    });
  });
}

}  // namespace
}  // namespace lockstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lockstep::cpu {

HWY_EXPORT(cross_entropy_kernel);

void cross_entropy(const CrossEntropy& cross_entropy, ThreadPool& pool) {
  HWY_DYNAMIC_DISPATCH(cross_entropy_kernel)(cross_entropy, pool);
}

}  // namespace lockstep::cpu
#endif
