// Weights kept in few bits a value, for matrices that are not trained (Dettmers et al., QLoRA, 2023).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace lockstep {

enum class Packing : std::uint8_t {
  kNone,
  kQ8,   // 32 values share a scale in f16, their largest magnitude / 127; a value is a multiple of it. ggml's Q8_0
  kNf4,  // 64 values share a scale in f32, their largest magnitude; a value is the nearest of kNf4Levels times it
};

// A matrix in blocks, in the order of its elements: the scales of all blocks, padding to kPackedAlignment bytes, and
// then the codes: a signed byte a value, or four bits, the lower half of a byte first. The last block may be short.
struct PackedWeight {
  Packing packing = Packing::kNone;
  const std::byte* data = nullptr;  // on the device of the tensor that has it
};

inline constexpr std::size_t kPackedAlignment = 64;

[[nodiscard]] constexpr std::size_t values_in_block(Packing packing) { return packing == Packing::kNf4 ? 64 : 32; }
[[nodiscard]] constexpr std::size_t scale_bytes(Packing packing) { return packing == Packing::kNf4 ? 4 : 2; }
[[nodiscard]] constexpr std::size_t blocks_of(Packing packing, std::size_t count) {
  return (count + values_in_block(packing) - 1) / values_in_block(packing);
}
// Where the codes begin.
[[nodiscard]] constexpr std::size_t codes_offset(Packing packing, std::size_t count) {
  const std::size_t scales = blocks_of(packing, count) * scale_bytes(packing);
  return (scales + kPackedAlignment - 1) / kPackedAlignment * kPackedAlignment;
}
[[nodiscard]] constexpr std::size_t packed_bytes(Packing packing, std::size_t count) {
  return codes_offset(packing, count) + (packing == Packing::kNf4 ? (count + 1) / 2 : count);
}

// The quantiles of the standard normal distribution that the paper chooses, scaled to [-1, 1].
inline constexpr std::array<float, 16> kNf4Levels = {
    -1.0F,
    -0.6961928009986877F,
    -0.5250730514526367F,
    -0.39491748809814453F,
    -0.28444138169288635F,
    -0.18477343022823334F,
    -0.09105003625154495F,
    0.0F,
    0.07958029955625534F,
    0.16093020141124725F,
    0.24611230194568634F,
    0.33791524171829224F,
    0.44070982933044434F,
    0.5626170039176941F,
    0.7229568362236023F,
    1.0F,
};

// Fills packed_bytes(packing, values.size()) bytes, on the host. A value between two levels goes to the nearer one.
void pack(Packing packing, std::span<const float> values, std::span<std::byte> bytes);

}  // namespace lockstep
