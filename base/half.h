// IEEE half-precision floats, as files hold them.
#pragma once

#include <cstdint>

namespace lockstep {

// Rounds to nearest even; what is too large becomes infinite.
[[nodiscard]] std::uint16_t to_f16(float value);
// Exact.
[[nodiscard]] float from_f16(std::uint16_t value);

}  // namespace lockstep
