// IEEE half-precision floats: 11 bits of precision, magnitudes from 2^-24 to 65504.
#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace lockstep {

// Rounds to nearest even; what is too large becomes infinite.
[[nodiscard]] std::uint16_t to_f16(float value);
// Exact.
[[nodiscard]] float from_f16(std::uint16_t value);

struct Float16 {
  std::uint16_t bits = 0;

  Float16() = default;
  explicit Float16(float value) : bits(to_f16(value)) {}
  explicit operator float() const { return from_f16(bits); }
};

template <>
struct DTypeOf<Float16> {
  static constexpr DType value = DType::kF16;
};

}  // namespace lockstep
