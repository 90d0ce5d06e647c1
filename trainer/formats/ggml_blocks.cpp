#include "trainer/formats/ggml_blocks.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <cstring>

#include "base/dtype.h"
#include "base/half.h"

namespace lockstep {
namespace {

constexpr std::size_t kSmall = 32;   // values of a Q4_0, Q5_0 or Q8_0 block
constexpr std::size_t kLarge = 256;  // of a Q4_K or Q6_K block

struct Q4_0 {
  std::uint16_t scale;
  std::array<std::uint8_t, 16> low;  // value i, and i + 16 in the upper half
};
struct Q5_0 {
  std::uint16_t scale;
  std::array<std::uint8_t, 4> fifth;  // bit i of value i
  std::array<std::uint8_t, 16> low;
};
struct Q8_0 {
  std::uint16_t scale;
  std::array<std::int8_t, 32> values;
};
struct Q4_K {
  std::uint16_t scale;
  std::uint16_t minimum;
  std::array<std::uint8_t, 12> groups;  // 8 scales and 8 minima of 6 bits
  std::array<std::uint8_t, 128> values;
};
struct Q6_K {
  std::array<std::uint8_t, 128> low;
  std::array<std::uint8_t, 64> high;
  std::array<std::int8_t, 16> groups;
  std::uint16_t scale;
};
static_assert(sizeof(Q4_0) == 18 && sizeof(Q5_0) == 22 && sizeof(Q8_0) == 34 && sizeof(Q4_K) == 144 &&
              sizeof(Q6_K) == 210);

int clamped(float value, int low, int high) { return std::clamp(static_cast<int>(std::lround(value)), low, high); }

float largest_magnitude(std::span<const float> x) {
  float largest = 0;
  for (const float value : x) {
    largest = std::abs(value) > std::abs(largest) ? value : largest;
  }
  return largest;
}

// Symmetric: the value of the largest magnitude becomes -half exactly.
template <typename Block>
void pack_small(std::span<const float> x, int half, Block& block, std::array<std::uint8_t, kSmall>& levels) {
  const float scale = largest_magnitude(x) / static_cast<float>(-half);
  const float inverse = scale != 0 ? 1.0F / scale : 0.0F;
  block.scale = to_f16(scale);
  for (std::size_t i = 0; i < kSmall; ++i) {
    const int level = static_cast<int>(x[i] * inverse + static_cast<float>(half) + 0.5F);  // halves go up, as in ggml
    levels[i] = static_cast<std::uint8_t>(std::clamp(level, 0, 2 * half - 1));
  }
  for (std::size_t i = 0; i < kSmall / 2; ++i) {
    block.low[i] = static_cast<std::uint8_t>((levels[i] & 15) | (levels[i + 16] & 15) << 4);
  }
}

void pack(std::span<const float> x, Q4_0& block) {
  std::array<std::uint8_t, kSmall> levels;
  pack_small(x, 8, block, levels);
}
void pack(std::span<const float> x, Q5_0& block) {
  std::array<std::uint8_t, kSmall> levels;
  pack_small(x, 16, block, levels);
  block.fifth = {};
  for (std::size_t i = 0; i < kSmall; ++i) {
    block.fifth[i / 8] |= static_cast<std::uint8_t>((levels[i] >> 4) << (i % 8));
  }
}
void pack(std::span<const float> x, Q8_0& block) {
  const float scale = std::abs(largest_magnitude(x)) / 127.0F;
  const float inverse = scale != 0 ? 1.0F / scale : 0.0F;
  block.scale = to_f16(scale);
  for (std::size_t i = 0; i < kSmall; ++i) {
    block.values[i] = static_cast<std::int8_t>(clamped(x[i] * inverse, -127, 127));
  }
}

void unpack(const Q4_0& block, std::span<float> x) {
  const float scale = from_f16(block.scale);
  for (std::size_t i = 0; i < kSmall / 2; ++i) {
    x[i] = scale * static_cast<float>((block.low[i] & 15) - 8);
    x[i + 16] = scale * static_cast<float>((block.low[i] >> 4) - 8);
  }
}
void unpack(const Q5_0& block, std::span<float> x) {
  const float scale = from_f16(block.scale);
  const auto fifth = [&](std::size_t i) { return ((block.fifth[i / 8] >> (i % 8)) & 1) << 4; };
  for (std::size_t i = 0; i < kSmall / 2; ++i) {
    x[i] = scale * static_cast<float>(((block.low[i] & 15) | fifth(i)) - 16);
    x[i + 16] = scale * static_cast<float>(((block.low[i] >> 4) | fifth(i + 16)) - 16);
  }
}
void unpack(const Q8_0& block, std::span<float> x) {
  const float scale = from_f16(block.scale);
  for (std::size_t i = 0; i < kSmall; ++i) {
    x[i] = scale * static_cast<float>(block.values[i]);
  }
}

// What an error costs: large values carry more of a product than small ones.
float weight_of(float value) { return value * value; }

// The scale s for which s * round(x / s), within [-half, half - 1], is nearest to x: around the one at which the
// largest value just fits, each with the best factor for the levels that it gives.
float best_scale(std::span<const float> x, int half) {
  const float largest = largest_magnitude(x);
  if (largest == 0) {
    return 0;
  }
  constexpr int kTries = 9;
  float best = largest / static_cast<float>(-half);
  float best_gain = -1;
  for (int attempt = -kTries; attempt <= kTries; ++attempt) {
    const float inverse = (static_cast<float>(-half) + 0.1F * static_cast<float>(attempt)) / largest;
    float products = 0;
    float squares = 0;
    for (const float value : x) {
      const auto level = static_cast<float>(clamped(value * inverse, -half, half - 1));
      products += weight_of(value) * value * level;
      squares += weight_of(value) * level * level;
    }
    // With s = products / squares the error is what is left of the values' own squares.
    const float gain = squares > 0 ? products * products / squares : 0;
    if (gain > best_gain) {
      best_gain = gain;
      best = squares > 0 ? products / squares : best;
    }
  }
  return best;
}

void pack(std::span<const float> x, Q6_K& block) {
  constexpr std::size_t kGroups = 16;
  constexpr std::size_t kGroup = kLarge / kGroups;
  std::array<float, kGroups> scales;
  for (std::size_t g = 0; g < kGroups; ++g) {
    scales[g] = best_scale(x.subspan(g * kGroup, kGroup), 32);
  }
  const float largest = largest_magnitude(scales);
  const float inverse = largest != 0 ? -128.0F / largest : 0.0F;
  block.scale = to_f16(largest != 0 ? 1.0F / inverse : 0.0F);
  const float scale = from_f16(block.scale);
  std::array<std::uint8_t, kLarge> levels;
  for (std::size_t g = 0; g < kGroups; ++g) {
    block.groups[g] = static_cast<std::int8_t>(clamped(scales[g] * inverse, -128, 127));
    const float step = scale * static_cast<float>(block.groups[g]);
    for (std::size_t i = g * kGroup; i < (g + 1) * kGroup; ++i) {
      levels[i] = static_cast<std::uint8_t>((step != 0 ? clamped(x[i] / step, -32, 31) : 0) + 32);
    }
  }
  for (std::size_t half = 0; half < 2; ++half) {
    const std::uint8_t* const level = levels.data() + half * 128;
    for (std::size_t i = 0; i < 32; ++i) {
      block.low[half * 64 + i] = static_cast<std::uint8_t>((level[i] & 15) | (level[i + 64] & 15) << 4);
      block.low[half * 64 + i + 32] = static_cast<std::uint8_t>((level[i + 32] & 15) | (level[i + 96] & 15) << 4);
      block.high[half * 32 + i] = static_cast<std::uint8_t>(level[i] >> 4 | (level[i + 32] >> 4) << 2 |
                                                            (level[i + 64] >> 4) << 4 | (level[i + 96] >> 4) << 6);
    }
  }
}

void unpack(const Q6_K& block, std::span<float> x) {
  const float scale = from_f16(block.scale);
  for (std::size_t i = 0; i < kLarge; ++i) {
    const std::size_t half = i / 128;
    const std::size_t quarter = i % 128 / 32;
    const std::size_t place = i % 32;
    const int low = block.low[half * 64 + quarter % 2 * 32 + place] >> (quarter / 2 * 4) & 15;
    const int high = block.high[half * 32 + place] >> (quarter * 2) & 3;
    x[i] = scale * static_cast<float>(block.groups[i / 16]) * static_cast<float>((low | high << 4) - 32);
  }
}

// x is near step * level - minimum, with levels from 0 to 15 and both at least 0.
struct Affine {
  float step = 0;
  float minimum = 0;
};

// From the range of the values on, levels and the line through them are fitted in turn.
Affine best_affine(std::span<const float> x) {
  constexpr int kTries = 7;
  const float low = std::min(0.0F, *std::min_element(x.begin(), x.end()));
  const float high = *std::max_element(x.begin(), x.end());
  if (high <= low) {
    return {0, -low};
  }
  Affine best;
  float best_error = -1;
  for (int attempt = 0; attempt < kTries; ++attempt) {
    Affine line{(high - low) / (15.0F + 0.2F * static_cast<float>(attempt - kTries / 2)), -low};
    for (int round = 0; round < 3; ++round) {
      double w = 0, l = 0, ll = 0, v = 0, lv = 0;
      float error = 0;
      for (const float value : x) {
        const auto level = static_cast<float>(clamped((value + line.minimum) / line.step, 0, 15));
        const float weight = weight_of(value) + 1e-12F;
        const float difference = line.step * level - line.minimum - value;
        error += weight * difference * difference;
        w += static_cast<double>(weight);
        l += static_cast<double>(weight * level);
        ll += static_cast<double>(weight * level * level);
        v += static_cast<double>(weight * value);
        lv += static_cast<double>(weight * level * value);
      }
      if (best_error < 0 || error < best_error) {
        best_error = error;
        best = line;
      }
      const double determinant = w * ll - l * l;
      if (determinant <= 0) {
        break;
      }
      const double step = (w * lv - l * v) / determinant;
      const double minimum = -(ll * v - l * lv) / determinant;
      if (step <= 0) {
        break;
      }
      line.step = static_cast<float>(minimum >= 0 ? step : lv / ll);
      line.minimum = static_cast<float>(std::max(minimum, 0.0));
    }
  }
  return best;
}

// Six bits each: the first four of both kinds whole, the others with their upper two bits above those.
void pack_groups(const std::array<int, 8>& scales, const std::array<int, 8>& minima,
                 std::array<std::uint8_t, 12>& bytes) {
  bytes = {};
  for (std::size_t g = 0; g < 4; ++g) {
    bytes[g] = static_cast<std::uint8_t>(scales[g] | (scales[g + 4] >> 4) << 6);
    bytes[g + 4] = static_cast<std::uint8_t>(minima[g] | (minima[g + 4] >> 4) << 6);
    bytes[g + 8] = static_cast<std::uint8_t>((scales[g + 4] & 15) | (minima[g + 4] & 15) << 4);
  }
}
struct GroupLevels {
  int scale;
  int minimum;
};
GroupLevels group_of(const std::array<std::uint8_t, 12>& bytes, std::size_t g) {
  if (g < 4) {
    return {bytes[g] & 63, bytes[g + 4] & 63};
  }
  return {(bytes[g + 4] & 15) | (bytes[g - 4] >> 6) << 4, (bytes[g + 4] >> 4) | (bytes[g] >> 6) << 4};
}

void pack(std::span<const float> x, Q4_K& block) {
  constexpr std::size_t kGroups = 8;
  constexpr std::size_t kGroup = kLarge / kGroups;
  std::array<Affine, kGroups> lines;
  float largest_step = 0;
  float largest_minimum = 0;
  for (std::size_t g = 0; g < kGroups; ++g) {
    lines[g] = best_affine(x.subspan(g * kGroup, kGroup));
    largest_step = std::max(largest_step, lines[g].step);
    largest_minimum = std::max(largest_minimum, lines[g].minimum);
  }
  block.scale = to_f16(largest_step / 63.0F);
  block.minimum = to_f16(largest_minimum / 63.0F);
  const float scale = from_f16(block.scale);
  const float minimum = from_f16(block.minimum);
  std::array<int, kGroups> scales;
  std::array<int, kGroups> minima;
  std::array<std::uint8_t, kLarge> levels;
  for (std::size_t g = 0; g < kGroups; ++g) {
    scales[g] = scale > 0 ? clamped(lines[g].step / scale, 0, 63) : 0;
    minima[g] = minimum > 0 ? clamped(lines[g].minimum / minimum, 0, 63) : 0;
    const float step = scale * static_cast<float>(scales[g]);
    const float below = minimum * static_cast<float>(minima[g]);
    for (std::size_t i = g * kGroup; i < (g + 1) * kGroup; ++i) {
      levels[i] = static_cast<std::uint8_t>(step > 0 ? clamped((x[i] + below) / step, 0, 15) : 0);
    }
  }
  pack_groups(scales, minima, block.groups);
  for (std::size_t i = 0; i < kLarge / 2; ++i) {
    const std::size_t first = i / 32 * 64 + i % 32;
    block.values[i] = static_cast<std::uint8_t>(levels[first] | levels[first + 32] << 4);
  }
}

void unpack(const Q4_K& block, std::span<float> x) {
  const float scale = from_f16(block.scale);
  const float minimum = from_f16(block.minimum);
  for (std::size_t i = 0; i < kLarge; ++i) {
    const GroupLevels group = group_of(block.groups, i / 32);
    const int level = block.values[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
    x[i] = scale * static_cast<float>(group.scale) * static_cast<float>(level) -
           minimum * static_cast<float>(group.minimum);
  }
}

template <typename Block>
void pack_all(std::span<const float> values, std::size_t block_size, std::span<std::byte> bytes) {
  for (std::size_t b = 0; b * block_size < values.size(); ++b) {
    Block block;
    pack(values.subspan(b * block_size, block_size), block);
    std::memcpy(bytes.data() + b * sizeof(Block), &block, sizeof(Block));
  }
}
template <typename Block>
void unpack_all(std::span<const std::byte> bytes, std::size_t block_size, std::span<float> values) {
  for (std::size_t b = 0; b * block_size < values.size(); ++b) {
    Block block;
    std::memcpy(&block, bytes.data() + b * sizeof(Block), sizeof(Block));
    unpack(block, values.subspan(b * block_size, block_size));
  }
}

}  // namespace

std::string_view name_of(GgmlType type) {
  switch (type) {
    case GgmlType::kF32:
      return "F32";
    case GgmlType::kF16:
      return "F16";
    case GgmlType::kQ4_0:
      return "Q4_0";
    case GgmlType::kQ5_0:
      return "Q5_0";
    case GgmlType::kQ8_0:
      return "Q8_0";
    case GgmlType::kQ4_K:
      return "Q4_K";
    case GgmlType::kQ6_K:
      return "Q6_K";
    case GgmlType::kBF16:
      return "BF16";
  }
  return "";
}

std::int64_t block_values(GgmlType type) {
  switch (type) {
    case GgmlType::kF32:
    case GgmlType::kF16:
    case GgmlType::kBF16:
      return 1;
    case GgmlType::kQ4_0:
    case GgmlType::kQ5_0:
    case GgmlType::kQ8_0:
      return kSmall;
    case GgmlType::kQ4_K:
    case GgmlType::kQ6_K:
      return kLarge;
  }
  return 1;
}

std::size_t block_bytes(GgmlType type) {
  switch (type) {
    case GgmlType::kF32:
      return 4;
    case GgmlType::kF16:
    case GgmlType::kBF16:
      return 2;
    case GgmlType::kQ4_0:
      return sizeof(Q4_0);
    case GgmlType::kQ5_0:
      return sizeof(Q5_0);
    case GgmlType::kQ8_0:
      return sizeof(Q8_0);
    case GgmlType::kQ4_K:
      return sizeof(Q4_K);
    case GgmlType::kQ6_K:
      return sizeof(Q6_K);
  }
  return 0;
}

std::size_t size_of(GgmlType type, std::int64_t values) {
  return static_cast<std::size_t>(values / block_values(type)) * block_bytes(type);
}

void quantize(GgmlType type, std::span<const float> values, std::span<std::byte> bytes) {
  assert(bytes.size() == size_of(type, static_cast<std::int64_t>(values.size())));
  switch (type) {
    case GgmlType::kF32:
      std::memcpy(bytes.data(), values.data(), bytes.size());
      break;
    case GgmlType::kF16:
      for (std::size_t i = 0; i < values.size(); ++i) {
        const std::uint16_t half = to_f16(values[i]);
        std::memcpy(bytes.data() + 2 * i, &half, 2);
      }
      break;
    case GgmlType::kBF16:
      for (std::size_t i = 0; i < values.size(); ++i) {
        const BFloat16 narrow(values[i]);
        std::memcpy(bytes.data() + 2 * i, &narrow, 2);
      }
      break;
    case GgmlType::kQ4_0:
      pack_all<Q4_0>(values, kSmall, bytes);
      break;
    case GgmlType::kQ5_0:
      pack_all<Q5_0>(values, kSmall, bytes);
      break;
    case GgmlType::kQ8_0:
      pack_all<Q8_0>(values, kSmall, bytes);
      break;
    case GgmlType::kQ4_K:
      pack_all<Q4_K>(values, kLarge, bytes);
      break;
    case GgmlType::kQ6_K:
      pack_all<Q6_K>(values, kLarge, bytes);
      break;
  }
}

void dequantize(GgmlType type, std::span<const std::byte> bytes, std::span<float> values) {
  assert(bytes.size() == size_of(type, static_cast<std::int64_t>(values.size())));
  switch (type) {
    case GgmlType::kF32:
      std::memcpy(values.data(), bytes.data(), bytes.size());
      break;
    case GgmlType::kF16:
      for (std::size_t i = 0; i < values.size(); ++i) {
        std::uint16_t half = 0;
        std::memcpy(&half, bytes.data() + 2 * i, 2);
        values[i] = from_f16(half);
      }
      break;
    case GgmlType::kBF16:
      for (std::size_t i = 0; i < values.size(); ++i) {
        BFloat16 narrow;
        std::memcpy(&narrow, bytes.data() + 2 * i, 2);
        values[i] = static_cast<float>(narrow);
      }
      break;
    case GgmlType::kQ4_0:
      unpack_all<Q4_0>(bytes, kSmall, values);
      break;
    case GgmlType::kQ5_0:
      unpack_all<Q5_0>(bytes, kSmall, values);
      break;
    case GgmlType::kQ8_0:
      unpack_all<Q8_0>(bytes, kSmall, values);
      break;
    case GgmlType::kQ4_K:
      unpack_all<Q4_K>(bytes, kLarge, values);
      break;
    case GgmlType::kQ6_K:
      unpack_all<Q6_K>(bytes, kLarge, values);
      break;
  }
}

}  // namespace lockstep
