// What the Highway kernels share: loads and stores of the working dtypes as vectors of floats, sums whose order is
// fixed by the count alone, and the exponential. A file of kernels includes it after hwy/foreach_target.h, so that it
// is compiled once for each instruction set; the best one is chosen at run time.
//
// Arithmetic is in f32. bf16 and f16 are widened on load and rounded to nearest even on store, exactly as
// BFloat16(float) and Float16(float) do.
#if defined(LOCKSTEP_OPS_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOCKSTEP_OPS_CPU_SIMD_INL_H_
#undef LOCKSTEP_OPS_CPU_SIMD_INL_H_
#else
#define LOCKSTEP_OPS_CPU_SIMD_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "base/dtype.h"
#include "base/half.h"

// Lambdas of kernels: the pragma of HWY_BEFORE_NAMESPACE does not reach them on every compiler, and they hold inner
// loops.
#ifndef LOCKSTEP_LAMBDA
#define LOCKSTEP_LAMBDA HWY_ATTR __attribute__((always_inline))
#endif

HWY_BEFORE_NAMESPACE();
namespace lockstep::cpu::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::CappedTag<float, 16>;
using IntTag = hn::RebindToSigned<FloatTag>;
using BitsTag = hn::RebindToUnsigned<FloatTag>;
using HalfBitsTag = hn::Rebind<std::uint16_t, FloatTag>;
using Float = hn::Vec<FloatTag>;

constexpr FloatTag kFloat;
constexpr std::size_t kLanes = hn::MaxLanes(FloatTag());

// How much of a vector a load or store covers.
struct Whole {
  static constexpr std::size_t size = kLanes;
};
struct Part {
  std::size_t size;
};

HWY_INLINE Float set(float value) { return hn::Set(kFloat, value); }

HWY_INLINE Float load(const float* from, Whole) { return hn::LoadU(kFloat, from); }

HWY_INLINE Float widened(hn::Vec<HalfBitsTag> bits, BFloat16) {
  return hn::BitCast(kFloat, hn::ShiftLeft<16>(hn::PromoteTo(BitsTag(), bits)));
}

// The fraction and exponent move into place, and the exponent's bias changes by 112. Multiples of 2^-24 below 2^-14 get
// the exponent of 2^-14, which is then subtracted; infinities and NaN get the largest exponent.
HWY_INLINE Float widened(hn::Vec<HalfBitsTag> bits, Float16) {
  const BitsTag tag;
  const auto wide = hn::PromoteTo(tag, bits);
  const auto magnitude = hn::And(wide, hn::Set(tag, 0x7fffU));
  const auto shifted = hn::ShiftLeft<13>(magnitude);
  const auto normal = hn::Add(shifted, hn::Set(tag, 112U << 23));
  const auto special = hn::Add(shifted, hn::Set(tag, 224U << 23));
  const Float least = hn::BitCast(kFloat, hn::Set(tag, 113U << 23));
  const auto small = hn::BitCast(tag, hn::Sub(hn::BitCast(kFloat, hn::Add(shifted, hn::Set(tag, 113U << 23))), least));
  const auto is_small = hn::Lt(magnitude, hn::Set(tag, 0x400U));
  const auto is_special = hn::Gt(magnitude, hn::Set(tag, 0x7bffU));
  const auto result = hn::IfThenElse(is_special, special, hn::IfThenElse(is_small, small, normal));
  const auto sign = hn::ShiftLeft<16>(hn::And(wide, hn::Set(tag, 0x8000U)));
  return hn::BitCast(kFloat, hn::Or(result, sign));
}

HWY_INLINE hn::Vec<HalfBitsTag> narrowed(Float value, BFloat16) {
  const BitsTag tag;
  const auto bits = hn::BitCast(tag, value);
  const auto upper = hn::ShiftRight<16>(bits);
  const auto is_odd = hn::And(upper, hn::Set(tag, 1U));
  const auto rounded = hn::ShiftRight<16>(hn::Add(hn::Add(bits, hn::Set(tag, 0x7fffU)), is_odd));
  const auto quiet_nan = hn::Or(upper, hn::Set(tag, 0x40U));
  const auto is_nan = hn::RebindMask(tag, hn::IsNaN(value));
  const auto result = hn::IfThenElse(is_nan, quiet_nan, rounded);
  return hn::TruncateTo(HalfBitsTag(), result);
}

// Adding 0.5 to what is below 2^-14 rounds it to a multiple of 2^-24 and leaves that in the low bits of the sum.
HWY_INLINE hn::Vec<HalfBitsTag> narrowed(Float value, Float16) {
  const BitsTag tag;
  const auto bits = hn::BitCast(tag, value);
  const auto magnitude = hn::And(bits, hn::Set(tag, 0x7fffffffU));
  const auto is_odd = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(tag, 1U));
  const auto shifted = hn::Sub(hn::Add(hn::Add(magnitude, hn::Set(tag, 0xfffU)), is_odd), hn::Set(tag, 112U << 23));
  const auto normal = hn::ShiftRight<13>(shifted);
  const auto half = hn::Set(tag, 126U << 23);
  const auto small =
      hn::Sub(hn::BitCast(tag, hn::Add(hn::BitCast(kFloat, magnitude), hn::BitCast(kFloat, half))), half);
  const auto is_small = hn::Lt(magnitude, hn::Set(tag, 113U << 23));
  const auto is_infinite = hn::Gt(magnitude, hn::Set(tag, 0x477fefffU));  // from 65520 on
  const auto is_nan = hn::Gt(magnitude, hn::Set(tag, 0x7f800000U));
  auto result = hn::IfThenElse(is_small, small, normal);
  result = hn::IfThenElse(is_infinite, hn::Set(tag, 0x7c00U), result);
  result = hn::IfThenElse(is_nan, hn::Set(tag, 0x7e00U), result);
  const auto sign = hn::And(hn::ShiftRight<16>(bits), hn::Set(tag, 0x8000U));
  return hn::TruncateTo(HalfBitsTag(), hn::Or(result, sign));
}

template <typename T>
HWY_INLINE Float load(const T* from, Whole) {
  return widened(hn::LoadU(HalfBitsTag(), reinterpret_cast<const std::uint16_t*>(from)), T());
}

// Lanes past the end are 0. Masks do it where they keep the processor from touching what lies past the end, a copy
// elsewhere.
template <typename T>
HWY_INLINE Float load(const T* from, Part part) {
  if constexpr (HWY_MEM_OPS_MIGHT_FAULT) {
    alignas(64) std::uint8_t buffer[kLanes * sizeof(T)] = {};
    std::memcpy(buffer, from, part.size * sizeof(T));
    return load(reinterpret_cast<const T*>(buffer), Whole());
  } else if constexpr (std::is_same_v<T, float>) {
    return hn::MaskedLoad(hn::FirstN(kFloat, part.size), kFloat, from);
  } else {
    const HalfBitsTag tag;
    return widened(hn::MaskedLoad(hn::FirstN(tag, part.size), tag, reinterpret_cast<const std::uint16_t*>(from)), T());
  }
}

HWY_INLINE void store(Float value, float* to, Whole) { hn::StoreU(value, kFloat, to); }

template <typename T>
HWY_INLINE void store(Float value, T* to, Whole) {
  hn::StoreU(narrowed(value, T()), HalfBitsTag(), reinterpret_cast<std::uint16_t*>(to));
}

template <typename T>
HWY_INLINE void store(Float value, T* to, Part part) {
  if constexpr (HWY_MEM_OPS_MIGHT_FAULT) {
    alignas(64) std::uint8_t buffer[kLanes * sizeof(T)];
    store(value, reinterpret_cast<T*>(buffer), Whole());
    std::memcpy(to, buffer, part.size * sizeof(T));
  } else if constexpr (std::is_same_v<T, float>) {
    hn::BlendedStore(value, hn::FirstN(kFloat, part.size), kFloat, to);
  } else {
    const HalfBitsTag tag;
    hn::BlendedStore(narrowed(value, T()), hn::FirstN(tag, part.size), tag, reinterpret_cast<std::uint16_t*>(to));
  }
}

// Calls body(i, extent) for consecutive vectors of [0, count).
template <typename Body>
HWY_INLINE void sweep(std::size_t count, const Body& body) {
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    body(i, Whole());
  }
  if (i < count) {
    body(i, Part{count - i});
  }
}

// Sums run in 32 lanes, element i in lane i % 32, whatever the vector's width, so that processors with FMA and vectors
// of 4, 8 or 16 lanes agree. (The portable fallback, vectors of 1, has 8 lanes and no FMA.)
constexpr std::size_t kGroup = kLanes < 4 ? 8 : 32 / kLanes;
constexpr std::size_t kSumLanes = kGroup * kLanes;
template <std::size_t J>
using Index = std::integral_constant<std::size_t, J>;

struct Accumulator {
  Float lanes[kGroup];

  HWY_INLINE explicit Accumulator(float start) {
    for (Float& lane : lanes) {
      lane = set(start);
    }
  }
  template <std::size_t J>
  HWY_INLINE Float& operator[](Index<J>) {
    return lanes[J];
  }
};

template <std::size_t J, typename Body>
HWY_INLINE void sweep_last(std::size_t begin, std::size_t count, const Body& body) {
  if (begin + kLanes <= count) {
    body(begin, Index<J>(), Whole());
  } else if (begin < count) {
    body(begin, Index<J>(), Part{count - begin});
  }
}

template <typename Body, std::size_t... J>
HWY_INLINE void sweep_groups(std::size_t count, const Body& body, std::index_sequence<J...>) {
  std::size_t i = 0;
  for (; i + kSumLanes <= count; i += kSumLanes) {
    (body(i + J * kLanes, Index<J>(), Whole()), ...);
  }
  (sweep_last<J>(i + J * kLanes, count, body), ...);
}

// Calls body(i, lane group, extent) for consecutive vectors of [0, count); a body that sums adds to accumulator[lane
// group].
template <typename Body>
HWY_INLINE void sweep_groups(std::size_t count, const Body& body) {
  sweep_groups(count, body, std::make_index_sequence<kGroup>());
}

template <typename D, typename Combine>
HWY_INLINE float fold_lanes(D d, hn::Vec<D> v, const Combine& combine) {
  constexpr std::size_t kSize = hn::MaxLanes(D());
  if constexpr (kSize == 1) {
    return hn::GetLane(v);
  } else if constexpr (kSize <= 4) {
    alignas(16) float a[kSize];
    hn::StoreU(v, d, a);
    const hn::CappedTag<float, 1> one;
    for (std::size_t half = kSize / 2; half > 0; half /= 2) {
      for (std::size_t i = 0; i < half; ++i) {
        a[i] = hn::GetLane(combine(one, hn::LoadU(one, a + i), hn::LoadU(one, a + i + half)));
      }
    }
    return a[0];
  } else {
    const hn::Half<D> half;
    // UpperHalf without hn::, since the portable fallback has none.
    return fold_lanes(half, combine(half, hn::LowerHalf(half, v), UpperHalf(half, v)), combine);
  }
}

// Halves the lanes until one is left: lane l meets lane l + 16, then l + 8, ...
template <typename Combine>
HWY_INLINE float fold(Accumulator a, const Combine& combine) {
  for (std::size_t half = kGroup / 2; half > 0; half /= 2) {
    for (std::size_t i = 0; i < half; ++i) {
      a.lanes[i] = combine(kFloat, a.lanes[i], a.lanes[i + half]);
    }
  }
  return fold_lanes(kFloat, a.lanes[0], combine);
}

struct Plus {
  template <typename D, typename V>
  HWY_INLINE V operator()(D, V a, V b) const {
    return hn::Add(a, b);
  }
};
struct Larger {
  template <typename D, typename V>
  HWY_INLINE V operator()(D, V a, V b) const {
    return hn::Max(a, b);
  }
};
HWY_INLINE float sum_of(const Accumulator& a) { return fold(a, Plus()); }
HWY_INLINE float max_of(const Accumulator& a) { return fold(a, Larger()); }

// e^x: relative error below 1.1 units in the last place for results of 2^-125 and above, 0 below that, infinity above
// the largest float; NaN stays NaN. x = n ln 2 + r with |r| <= ln 2 / 2; e^r by a polynomial of degree 6 (minimax).
HWY_INLINE Float exp(Float x) {
  const Float largest = set(89.0F);  // its exponential is infinite already
  const auto is_tiny = hn::Lt(x, set(-86.6F));
  x = hn::IfThenElse(hn::Gt(x, largest), largest, x);
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits of the sum, here n + 126.
  const Float rounder = set(12582912.0F + 126.0F);
  const Float shifted = hn::MulAdd(x, set(1.44269504F), rounder);
  const Float n = hn::Sub(shifted, rounder);
  Float r = hn::NegMulAdd(n, set(0.693145752F), x);  // ln 2 in two parts; the product with the first is exact
  r = hn::NegMulAdd(n, set(1.42860677e-6F), r);
  Float q = hn::MulAdd(set(0.00139262134663F), r, set(0.00836320297158F));
  q = hn::MulAdd(q, r, set(0.0416665544377F));
  q = hn::MulAdd(q, r, set(0.16666576846F));
  q = hn::MulAdd(q, r, set(0.5F));
  const Float p = hn::Add(set(1.0F), hn::MulAdd(hn::Mul(r, r), q, r));
  // 2 p 2^(n - 1): n = 128 would leave the exponent's range.
  const Float power = hn::BitCast(kFloat, hn::ShiftLeft<23>(hn::BitCast(BitsTag(), shifted)));
  return hn::IfThenZeroElse(is_tiny, hn::Mul(hn::Add(p, p), power));
}

// 1 / (1 + e^-x), within 2.5 units in the last place.
HWY_INLINE Float sigmoid(Float x) {
  const Float one = set(1.0F);
  return hn::Div(one, hn::Add(one, exp(hn::Neg(x))));
}

}  // namespace
}  // namespace lockstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
