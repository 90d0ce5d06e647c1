#include "comm/server/wire.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cstring>
#include <limits>

#include "base/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "comm/server/wire.cpp"
#include <hwy/foreach_target.h>
// foreach_target.h comes first: it includes this file again for each target.
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace lockstep::server::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr std::int32_t kAbs = 0x7fffffff;
constexpr std::int32_t kInfinity = 0x7f800000;

// Calls op(d, i) for each vector of elements [i, i + Lanes(d)), and with one lane for the rest.
template <typename Op>
HWY_INLINE void for_each_vector(std::size_t count, const Op& op) {
  const hn::ScalableTag<float> full;
  const hn::CappedTag<float, 1> single;
  std::size_t i = 0;
  for (; i + hn::Lanes(full) <= count; i += hn::Lanes(full)) {
    op(full, i);
  }
  for (; i < count; ++i) {
    op(single, i);
  }
}

void encode_bf16(const float* values, std::size_t count, std::byte* bytes) {
  auto* const out = reinterpret_cast<std::uint16_t*>(bytes);
  for_each_vector(count, [&](auto d, std::size_t i) HWY_ATTR {
    const hn::RebindToSigned<decltype(d)> di;
    const hn::RebindToUnsigned<decltype(d)> du;
    const hn::Rebind<std::uint16_t, decltype(d)> d16;
    const auto value = hn::LoadU(d, values + i);
    const auto bits = hn::BitCast(du, value);
    const auto high = hn::ShiftRight<16>(bits);
    const auto odd = hn::And(high, hn::Set(du, 1));
    const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7fff))));
    const auto is_nan = hn::Gt(hn::And(hn::BitCast(di, bits), hn::Set(di, kAbs)), hn::Set(di, kInfinity));
    const auto quiet = hn::Or(high, hn::Set(du, 0x40));
    const auto result = hn::IfThenElse(is_nan, hn::BitCast(di, quiet), hn::BitCast(di, rounded));
    hn::StoreU(hn::DemoteTo(d16, result), d16, out + i);
  });
}

void decode_bf16(const std::byte* bytes, std::size_t count, float* values) {
  const auto* const in = reinterpret_cast<const std::uint16_t*>(bytes);
  for_each_vector(count, [&](auto d, std::size_t i) HWY_ATTR {
    const hn::RebindToUnsigned<decltype(d)> du;
    const hn::Rebind<std::uint16_t, decltype(d)> d16;
    const auto bits = hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(d16, in + i)));
    hn::StoreU(hn::BitCast(d, bits), d, values + i);
  });
}

// The largest magnitude among value + residual, by its bits, so that what is not finite counts as the largest. Leaves
// the sums in `sums`.
std::int32_t add_residual(const float* values, const float* residual, std::size_t count, float* sums) {
  const hn::ScalableTag<float> d;
  const hn::RebindToSigned<decltype(d)> di;
  auto largest = hn::Zero(di);
  std::size_t i = 0;
  for (; i + hn::Lanes(d) <= count; i += hn::Lanes(d)) {
    auto value = hn::LoadU(d, values + i);
    if (residual != nullptr) {
      value = hn::Add(value, hn::LoadU(d, residual + i));
    }
    hn::StoreU(value, d, sums + i);
    largest = hn::Max(largest, hn::And(hn::BitCast(di, value), hn::Set(di, kAbs)));
  }
  std::int32_t result = hn::GetLane(hn::MaxOfLanes(di, largest));
  for (; i < count; ++i) {
    sums[i] = residual == nullptr ? values[i] : values[i] + residual[i];
    std::int32_t bits = 0;
    std::memcpy(&bits, sums + i, sizeof(bits));
    result = std::max(result, bits & kAbs);
  }
  return result;
}

void round_block(const float* sums, std::size_t count, float scale, float inverse, float* residual, std::byte* bytes) {
  auto* const out = reinterpret_cast<std::int8_t*>(bytes);
  for_each_vector(count, [&](auto d, std::size_t i) HWY_ATTR {
    const hn::Rebind<std::int8_t, decltype(d)> d8;
    const auto value = hn::LoadU(d, sums + i);
    const auto rounded = hn::NearestInt(hn::Mul(value, hn::Set(d, inverse)));
    hn::StoreU(hn::DemoteTo(d8, rounded), d8, out + i);
    if (residual != nullptr) {
      const auto kept = hn::Mul(hn::ConvertTo(d, rounded), hn::Set(d, scale));
      hn::StoreU(hn::Sub(value, kept), d, residual + i);
    }
  });
}

void encode_int8(const float* values, std::size_t count, float* residual, std::byte* bytes) {
  std::array<float, kInt8Block> sums;
  for (std::size_t begin = 0; begin < count; begin += kInt8Block) {
    const std::size_t length = std::min(kInt8Block, count - begin);
    float* const kept = residual == nullptr ? nullptr : residual + begin;
    const std::int32_t largest_bits = add_residual(values + begin, kept, length, sums.data());
    float largest = 0;
    std::memcpy(&largest, &largest_bits, sizeof(largest));
    float scale = largest / 127;
    // So small that its inverse would overflow: nothing is sent, all of it waits.
    float inverse = scale < std::numeric_limits<float>::min() ? 0 : 1 / scale;
    scale = inverse == 0 ? 0 : scale;
    if (largest_bits >= kInfinity) {
      scale = std::numeric_limits<float>::quiet_NaN();
      inverse = 0;
      sums.fill(0);  // nothing to make good later
    }
    std::memcpy(bytes, &scale, sizeof(scale));
    bytes += sizeof(scale);
    round_block(sums.data(), length, largest_bits >= kInfinity ? 0 : scale, inverse, kept, bytes);
    bytes += length;
  }
}

void decode_int8(const std::byte* bytes, std::size_t count, float* values) {
  for (std::size_t begin = 0; begin < count; begin += kInt8Block) {
    const std::size_t length = std::min(kInt8Block, count - begin);
    float scale = 0;
    std::memcpy(&scale, bytes, sizeof(scale));
    bytes += sizeof(scale);
    const auto* const in = reinterpret_cast<const std::int8_t*>(bytes);
    for_each_vector(length, [&](auto d, std::size_t i) HWY_ATTR {
      const hn::RebindToSigned<decltype(d)> di;
      const hn::Rebind<std::int8_t, decltype(d)> d8;
      const auto number = hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(d8, in + i)));
      hn::StoreU(hn::Mul(number, hn::Set(d, scale)), d, values + begin + i);
    });
    bytes += length;
  }
}

}  // namespace lockstep::server::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lockstep::server {

HWY_EXPORT(encode_bf16);
HWY_EXPORT(decode_bf16);
HWY_EXPORT(encode_int8);
HWY_EXPORT(decode_int8);

Wire wire_of(std::string_view name) {
  for (const Wire wire : {Wire::kAsIs, Wire::kBf16, Wire::kInt8}) {
    if (name == name_of(wire)) {
      return wire;
    }
  }
  fail(ErrorCode::kUsage, "comm.wire: found \"{}\", expected fp32, bf16 or int8", name);
}

std::string_view name_of(Wire wire) {
  constexpr std::array<std::string_view, 4> kNames = {"fp32", "bf16", "int8", "shared memory"};
  return kNames.at(static_cast<std::size_t>(wire));
}

void encode(Wire wire, std::span<const float> values, std::span<float> residual, std::span<std::byte> bytes) {
  assert(rounds(wire) && bytes.size() == wire_bytes(wire, values.size()));
  assert(residual.empty() || residual.size() == values.size());
  if (wire == Wire::kBf16) {
    assert(residual.empty());
    HWY_DYNAMIC_DISPATCH(encode_bf16)(values.data(), values.size(), bytes.data());
  } else {
    float* const kept = residual.empty() ? nullptr : residual.data();
    HWY_DYNAMIC_DISPATCH(encode_int8)(values.data(), values.size(), kept, bytes.data());
  }
}

void decode(Wire wire, std::span<const std::byte> bytes, std::span<float> values) {
  assert(wire != Wire::kAsIs && bytes.size() == wire_bytes(wire, values.size()));
  if (wire == Wire::kBf16) {
    HWY_DYNAMIC_DISPATCH(decode_bf16)(bytes.data(), values.size(), values.data());
  } else {
    HWY_DYNAMIC_DISPATCH(decode_int8)(bytes.data(), values.size(), values.data());
  }
}

}  // namespace lockstep::server
#endif
