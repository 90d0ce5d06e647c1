// The summation tree in its plainest form and numbers for which the order of adding shows.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/random.h"

namespace lockstep::test {

// Element i of leaf `leaf`: any sign, magnitudes over sixty binary orders.
template <typename T>
std::vector<T> leaf_values(int leaf, std::size_t count) {
  constexpr std::uint64_t kMantissa = (std::uint64_t{1} << 52) - 1;
  constexpr std::uint64_t kSign = std::uint64_t{1} << 63;
  std::vector<T> values(count);
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint64_t bits = mix64(static_cast<std::uint64_t>(leaf) << 40 | i);
    const std::uint64_t exponent = 1023 - 30 + bits % 61;  // biased, as in IEEE binary64
    values[i] = static_cast<T>(std::bit_cast<double>((bits & kSign) | exponent << 52 | (mix64(bits) & kMantissa)));
  }
  return values;
}

// leaves[first, first + width) of a tree that is filled up with absent leaves.
template <typename T>
std::vector<T> reference_subtree(const std::vector<std::vector<T>>& leaves, std::size_t first, std::size_t width) {
  if (width == 1) {
    return leaves[first];
  }
  std::vector<T> sum = reference_subtree(leaves, first, width / 2);
  const std::size_t middle = first + width / 2;
  if (middle < leaves.size()) {
    const std::vector<T> right = reference_subtree(leaves, middle, width / 2);
    for (std::size_t i = 0; i < sum.size(); ++i) {
      sum[i] += right[i];
    }
  }
  return sum;
}

template <typename T>
std::vector<T> reference_sum(const std::vector<std::vector<T>>& leaves) {
  return reference_subtree(leaves, 0, std::bit_ceil(leaves.size()));
}

template <typename Left, typename Right>
bool same_bits(const Left& left, const Right& right) {
  return left.size() == right.size() &&
         (left.empty() || std::memcmp(left.data(), right.data(), left.size() * sizeof(left[0])) == 0);
}

}  // namespace lockstep::test
