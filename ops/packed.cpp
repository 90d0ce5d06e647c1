#include "ops/packed.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>

#include "base/half.h"

namespace lockstep {
namespace {

float largest_magnitude(std::span<const float> values) {
  float largest = 0;
  for (const float value : values) {
    largest = std::max(largest, std::abs(value));
  }
  return largest;
}

void pack_q8(std::span<const float> values, std::byte* scale_at, std::byte* codes) {
  const float scale = largest_magnitude(values) / 127.0F;
  const float inverse = scale != 0 ? 1.0F / scale : 0.0F;
  const std::uint16_t half = to_f16(scale);
  std::memcpy(scale_at, &half, sizeof(half));
  for (std::size_t i = 0; i < values.size(); ++i) {
    codes[i] = static_cast<std::byte>(static_cast<std::int8_t>(std::round(values[i] * inverse)));
  }
}

std::uint8_t nearest_level(float value) {
  const auto above = std::upper_bound(kNf4Levels.begin(), kNf4Levels.end(), value);
  if (above == kNf4Levels.begin()) {
    return 0;
  }
  const auto below = above - 1;
  const bool takes_above = above != kNf4Levels.end() && value - *below > *above - value;
  return static_cast<std::uint8_t>((takes_above ? above : below) - kNf4Levels.begin());
}

void pack_nf4(std::span<const float> values, std::byte* scale_at, std::byte* codes) {
  const float scale = largest_magnitude(values);
  const float inverse = scale != 0 ? 1.0F / scale : 0.0F;
  std::memcpy(scale_at, &scale, sizeof(scale));
  for (std::size_t i = 0; i < values.size(); i += 2) {
    const std::uint8_t low = nearest_level(values[i] * inverse);
    const std::uint8_t high = i + 1 < values.size() ? nearest_level(values[i + 1] * inverse) : std::uint8_t{0};
    codes[i / 2] = static_cast<std::byte>(low | high << 4);
  }
}

}  // namespace

void pack(Packing packing, std::span<const float> values, std::span<std::byte> bytes) {
  assert(packing != Packing::kNone && bytes.size() == packed_bytes(packing, values.size()));
  const std::size_t block = values_in_block(packing);
  std::byte* const codes = bytes.data() + codes_offset(packing, values.size());
  for (std::size_t b = 0; b < blocks_of(packing, values.size()); ++b) {
    const auto part = values.subspan(b * block, std::min(block, values.size() - b * block));
    std::byte* const scale = bytes.data() + b * scale_bytes(packing);
    if (packing == Packing::kQ8) {
      pack_q8(part, scale, codes + b * block);
    } else {
      pack_nf4(part, scale, codes + b * block / 2);
    }
  }
}

}  // namespace lockstep
