// The number formats of GGUF files: blocks of values that share scales, as ggml lays them out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace lockstep {

enum class GgmlType : std::uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,   // 32 values: f16 scale, 4 bits each
  kQ5_0 = 6,   // 32 values: f16 scale, 5 bits each
  kQ8_0 = 8,   // 32 values: f16 scale, 8 bits each
  kQ4_K = 12,  // 256 values: 8 groups with a scale and a minimum of 6 bits, 4 bits each
  kQ6_K = 14,  // 256 values: 16 groups with a scale of 8 bits, 6 bits each
  kBF16 = 30,
};

// "F16", "Q4_K".
[[nodiscard]] std::string_view name_of(GgmlType type);
// Values in a block; a row is made of whole blocks.
[[nodiscard]] std::int64_t block_values(GgmlType type);
[[nodiscard]] std::size_t block_bytes(GgmlType type);
[[nodiscard]] std::size_t size_of(GgmlType type, std::int64_t values);

// Values of whole blocks into size_of(type, values.size()) bytes, and back.
void quantize(GgmlType type, std::span<const float> values, std::span<std::byte> bytes);
void dequantize(GgmlType type, std::span<const std::byte> bytes, std::span<float> values);

}  // namespace lockstep
