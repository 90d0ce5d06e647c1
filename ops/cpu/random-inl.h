// Dropout's random words as vectors: the same numbers as base/random.h's philox().
#if defined(LOCKSTEP_OPS_CPU_RANDOM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOCKSTEP_OPS_CPU_RANDOM_INL_H_
#undef LOCKSTEP_OPS_CPU_RANDOM_INL_H_
#else
#define LOCKSTEP_OPS_CPU_RANDOM_INL_H_
#endif

#include "base/random.h"
#include "ops/backend.h"
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lockstep::cpu::HWY_NAMESPACE {
namespace {

// Elements whose factors are made at a time.
constexpr std::size_t kFactorPiece = 1024;

// What dropout multiplies elements by: 1 / (1 - p) where kept, 0 elsewhere.
class DropoutFactors {
 public:
  explicit DropoutFactors(const Dropout& dropout)
      : key_(dropout.key), probability_(dropout.probability), factor_(1.0F / (1.0F - dropout.probability)) {}

  // The factors of elements [first, first + count), count <= kFactorPiece; valid until the next call.
  HWY_INLINE const float* of(std::uint64_t first, std::size_t count) {
    const std::size_t offset = first % 4;
    const std::size_t counters = (offset + count + 3) / 4;
    std::size_t done = 0;
    if constexpr (kLanes >= 4) {
      for (; done < counters; done += kCounters) {
        fill_vectors(first / 4 + done, factors_ + done * 4);
      }
    } else {
      for (; done < counters; ++done) {
        fill_one(first / 4 + done, factors_ + done * 4);
      }
    }
    return factors_ + offset;
  }

 private:
  static constexpr std::size_t kCounters = kLanes < 4 ? 1 : kLanes / 2;

  void fill_one(std::uint64_t counter, float* to) const {
    const auto words = philox(key_, counter);
    for (std::size_t i = 0; i < 4; ++i) {
      to[i] = uniform_float(words[i]) >= probability_ ? factor_ : 0.0F;
    }
  }

  // One counter in each 64-bit lane. The state's words are the lower halves; what multiplications leave in the upper
  // halves is ignored by the next one.
  template <typename D64 = hn::RepartitionToWide<BitsTag>>
  HWY_INLINE void fill_vectors(std::uint64_t counter, float* to) const {
    const D64 d64;
    const BitsTag d32;
    const auto set64 = [&](std::uint64_t value) LOCKSTEP_LAMBDA { return hn::Set(d64, value); };
    const auto multiplier0 = hn::BitCast(d32, set64(0xD2511F53U));
    const auto multiplier1 = hn::BitCast(d32, set64(0xCD9E8D57U));
    auto c0 = hn::Add(set64(counter), hn::Iota(d64, std::uint64_t{0}));
    auto c1 = hn::ShiftRight<32>(c0);
    auto c2 = hn::Zero(d64);
    auto c3 = hn::Zero(d64);
    RandomKey key = key_;
    for (int round = 0; round < 10; ++round) {
      const auto p0 = hn::MulEven(hn::BitCast(d32, c0), multiplier0);
      const auto p1 = hn::MulEven(hn::BitCast(d32, c2), multiplier1);
      c0 = hn::Xor3(hn::ShiftRight<32>(p1), c1, set64(key.k0));
      c2 = hn::Xor3(hn::ShiftRight<32>(p0), c3, set64(key.k1));
      c1 = p1;
      c3 = p0;
      key.k0 += 0x9E3779B9U;
      key.k1 += 0xBB67AE85U;
    }
    const auto lower = set64(0xFFFFFFFFU);
    const auto words01 = hn::Or(hn::And(c0, lower), hn::ShiftLeft<32>(c1));
    const auto words23 = hn::Or(hn::And(c2, lower), hn::ShiftLeft<32>(c3));
    const auto factors01 = hn::BitCast(d64, factors_of(hn::BitCast(d32, words01)));
    const auto factors23 = hn::BitCast(d64, factors_of(hn::BitCast(d32, words23)));
    hn::StoreInterleaved2(factors01, factors23, d64, reinterpret_cast<std::uint64_t*>(to));
  }

  HWY_INLINE Float factors_of(hn::Vec<BitsTag> words) const {
    const auto integers = hn::BitCast(IntTag(), hn::ShiftRight<8>(words));
    const Float uniform = hn::Mul(hn::ConvertTo(kFloat, integers), set(0x1p-24F));
    return hn::IfThenElseZero(hn::Ge(uniform, set(probability_)), set(factor_));
  }

  RandomKey key_;
  float probability_;
  float factor_;
  alignas(64) float factors_[kFactorPiece + 4 + 2 * kSumLanes];
};

}  // namespace
}  // namespace lockstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
