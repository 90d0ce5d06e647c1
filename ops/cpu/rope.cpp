#include "ops/cpu/rope.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/rope.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.
#include <hwy/highway.h>

#include "ops/cpu/dispatch.h"
#include "ops/cpu/scratch.h"
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lockstep::cpu::HWY_NAMESPACE {
namespace {

using DoubleTag = hn::CappedTag<double, 8>;
using NarrowTag = hn::Rebind<float, DoubleTag>;
using NarrowIntTag = hn::Rebind<std::int32_t, DoubleTag>;
constexpr std::size_t kDoubles = hn::MaxLanes(DoubleTag());

struct SineCosine {
  hn::Vec<NarrowTag> sine;
  hn::Vec<NarrowTag> cosine;
};

// angle = quarter * pi / 2 + r with |r| <= pi / 4, subtracted in f64 so that large angles keep their place; sine and
// cosine of r by minimax polynomials in r^2 whose error is below 1e-9.
HWY_INLINE SineCosine sine_cosine(hn::Vec<NarrowTag> angle) {
  const DoubleTag wide;
  const NarrowTag narrow;
  const NarrowIntTag integer;
  const auto constant = [&](float value) LOCKSTEP_LAMBDA { return hn::Set(narrow, value); };
  const auto angle64 = hn::PromoteTo(wide, angle);
  const auto quarter64 = hn::Round(hn::Mul(angle64, hn::Set(wide, 0.63661977236758134308)));
  const auto r = hn::DemoteTo(narrow, hn::NegMulAdd(quarter64, hn::Set(wide, 1.57079632679489661923), angle64));
  const auto quarter = hn::DemoteTo(integer, quarter64);

  const auto z = hn::Mul(r, r);
  auto s = hn::MulAdd(constant(2.72496200036e-6F), z, constant(-0.000198400843758F));
  s = hn::MulAdd(s, z, constant(0.00833333187034F));
  s = hn::MulAdd(s, z, constant(-0.166666666638F));
  const auto sine = hn::MulAdd(hn::Mul(s, z), r, r);
  auto c = hn::MulAdd(constant(2.45476897094e-5F), z, constant(-0.00138883018673F));
  c = hn::MulAdd(c, z, constant(0.0416666646535F));
  const auto cosine = hn::MulAdd(hn::Mul(c, z), z, hn::NegMulAdd(constant(0.5F), z, constant(1.0F)));

  // A quarter turn exchanges the two; the signs follow the quadrant.
  const auto one = hn::Set(integer, 1);
  const auto is_odd = hn::RebindMask(narrow, hn::Eq(hn::And(quarter, one), one));
  const auto sine_sign = hn::ShiftLeft<30>(hn::And(quarter, hn::Set(integer, 2)));
  const auto cosine_sign = hn::ShiftLeft<30>(hn::And(hn::Add(quarter, one), hn::Set(integer, 2)));
  return {hn::Xor(hn::IfThenElse(is_odd, cosine, sine), hn::BitCast(narrow, sine_sign)),
          hn::Xor(hn::IfThenElse(is_odd, sine, cosine), hn::BitCast(narrow, cosine_sign))};
}

// The sines and cosines of one position's angles.
void fill_angles(float position, const float* inverse_frequency, std::size_t count, float* sines, float* cosines) {
  const NarrowTag tag;
  float last[kDoubles] = {};
  float last_sines[kDoubles];
  float last_cosines[kDoubles];
  for (std::size_t i = 0; i < count; i += kDoubles) {
    const std::size_t size = std::min(kDoubles, count - i);
    const bool is_whole = size == kDoubles;
    if (!is_whole) {
      std::copy_n(inverse_frequency + i, size, last);
    }
    const auto frequency = hn::LoadU(tag, is_whole ? inverse_frequency + i : last);
    const SineCosine values = sine_cosine(hn::Mul(hn::Set(tag, position), frequency));
    hn::StoreU(values.sine, tag, is_whole ? sines + i : last_sines);
    hn::StoreU(values.cosine, tag, is_whole ? cosines + i : last_cosines);
    if (!is_whole) {
      std::copy_n(last_sines, size, sines + i);
      std::copy_n(last_cosines, size, cosines + i);
    }
  }
}

// (a, b) -> (a cos - b sin, b cos + a sin) for a = head[i], b = head[half + i].
template <typename T>
void rotate(std::size_t half, const float* sines, const float* cosines, T* head) {
  sweep(half, [&](std::size_t i, auto extent) LOCKSTEP_LAMBDA {
    const Float a = load(head + i, extent);
    const Float b = load(head + half + i, extent);
    const Float sine = load(sines + i, extent);
    const Float cosine = load(cosines + i, extent);
    store(hn::NegMulAdd(b, sine, hn::Mul(a, cosine)), head + i, extent);
    store(hn::MulAdd(a, sine, hn::Mul(b, cosine)), head + half + i, extent);
  });
}

void rope_kernel(const Rope& rope, ThreadPool& pool) {
  const auto rows = static_cast<std::size_t>(rope.rows.rows());
  const auto width = static_cast<std::size_t>(rope.rows.dim(-1));
  const auto half = static_cast<std::size_t>(rope.head_dim / 2);
  const std::int64_t longest = rope.lengths.empty() ? rope.rows_per_sequence : std::ranges::max(rope.lengths);
  const auto positions = std::min(static_cast<std::size_t>(longest), rows);
  // One table for all sequences and heads: for each position its sines, then its cosines. Backwards is the negative
  // angle.
  const std::span<float> table = scratch<float>(positions * 2 * half);
  const Chunks position_chunks = chunks_of_rows(static_cast<std::int64_t>(positions), rope.head_dim);
  pool.parallel_for(position_chunks.count(), [&](std::size_t chunk) {
    const std::size_t begin = position_chunks.begin(chunk);
    for (std::size_t p = begin; p < begin + position_chunks.size(chunk); ++p) {
      const auto position = static_cast<float>(rope.first_position + static_cast<std::int64_t>(p));
      float* sines = table.data() + p * 2 * half;
      fill_angles(rope.inverse ? -position : position, rope.inverse_frequency.data<float>(), half, sines, sines + half);
    }
  });

  const auto rotate_rows = [&](std::size_t first, std::size_t count, std::size_t length) {
    const Chunks chunks = chunks_of_rows(static_cast<std::int64_t>(count), rope.heads * rope.head_dim);
    with_working_type(rope.rows.dtype(), [&](auto type) {
      using T = decltype(type);
      pool.parallel_for(chunks.count(), [&](std::size_t chunk) {
        for (std::size_t row = chunks.begin(chunk); row < chunks.begin(chunk) + chunks.size(chunk); ++row) {
          const float* sines = table.data() + row % length * 2 * half;
          for (std::int64_t head = 0; head < rope.heads; ++head) {
            rotate(half, sines, sines + half,
                   rope.rows.data<T>() + (first + row) * width + static_cast<std::size_t>(head * rope.head_dim));
          }
        }
      });
    });
  };
  if (rope.lengths.empty()) {
    rotate_rows(0, rows, positions);
    return;
  }
  std::size_t first = 0;
  for (const std::int64_t length : rope.lengths) {
    rotate_rows(first, static_cast<std::size_t>(length), static_cast<std::size_t>(length));
    first += static_cast<std::size_t>(length);
  }
}

}  // namespace
}  // namespace lockstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lockstep::cpu {

HWY_EXPORT(rope_kernel);

void rope(const Rope& rope, ThreadPool& pool) { HWY_DYNAMIC_DISPATCH(rope_kernel)(rope, pool); }

}  // namespace lockstep::cpu
#endif
