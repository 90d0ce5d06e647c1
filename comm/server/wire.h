// How the numbers of an f32 sum travel: as they are, or rounded to fewer bytes (docs/server-protocol.md).
//
// Rounding to int8 alone would drop the small elements of a block in every step. What it drops is therefore kept and
// added to the same element the next time: error feedback, as in "1-bit stochastic gradient descent" (Seide et al.,
// Interspeech 2014) and EF-SGD (Karimireddy et al., ICML 2019). The sum comes back in bf16, whose rounding is relative
// to each element and drops none: a server keeps nothing between two sums.
//
// Pure functions, safe from any thread. They give the same bits on every processor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace lockstep::server {

enum class Wire : std::uint8_t {
  kAsIs = 0,
  kBf16 = 1,  // two bytes an element, rounded to nearest even
  kInt8 = 2,  // blocks of kInt8Block elements: an f32 scale, then a signed byte an element, to be multiplied with it
  kInMemory = 3,  // not at all: the frame says where they lie in memory that both sides share
};

inline constexpr std::size_t kInt8Block = 256;

// "fp32", "bf16", "int8": what comm.wire says. Throws Error(kUsage).
[[nodiscard]] Wire wire_of(std::string_view name);
[[nodiscard]] std::string_view name_of(Wire wire);
[[nodiscard]] constexpr bool rounds(Wire wire) { return wire == Wire::kBf16 || wire == Wire::kInt8; }
// What the sum of contributions that came so goes back as.
[[nodiscard]] constexpr Wire wire_of_sum(Wire pushed) { return rounds(pushed) ? Wire::kBf16 : pushed; }
// Of `count` elements of f32 that travel; the last block may be short.
[[nodiscard]] constexpr std::size_t wire_bytes(Wire wire, std::size_t count) {
  switch (wire) {
    case Wire::kBf16:
      return count * 2;
    case Wire::kInt8:
      return count + (count + kInt8Block - 1) / kInt8Block * sizeof(float);
    case Wire::kAsIs:
    case Wire::kInMemory:
      break;
  }
  return count * sizeof(float);
}

// bytes.size() == wire_bytes(wire, values.size()); `wire` is one that rounds. A block with an element that is not
// finite becomes NaN throughout in int8.
//
// `residual`, as long as `values` or empty for none: what earlier calls rounded away, which is added to the values;
// replaced by what this call rounds away.
void encode(Wire wire, std::span<const float> values, std::span<float> residual, std::span<std::byte> bytes);
void decode(Wire wire, std::span<const std::byte> bytes, std::span<float> values);

}  // namespace lockstep::server
