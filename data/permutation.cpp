#include "data/permutation.h"

#include <algorithm>
#include <bit>
#include <cassert>

namespace lockstep {

Permutation::Permutation(std::uint64_t size, RandomKey key) : size_(size) {
  assert(size >= 1 && size <= std::uint64_t{1} << 63);
  constexpr int kFewestBits = 10;
  const int bits = std::max(kFewestBits, static_cast<int>(std::bit_width(size - 1)));
  low_bits_ = bits / 2;
  low_mask_ = (std::uint64_t{1} << low_bits_) - 1;
  high_mask_ = (std::uint64_t{1} << (bits - low_bits_)) - 1;
  for (std::uint32_t round = 0; round < kRounds; ++round) {
    const auto words = philox(key, round);
    keys_[round] = (std::uint64_t{words[0]} << 32) | words[1];
  }
}

std::uint64_t Permutation::operator()(std::uint64_t index) const {
  assert(index < size_);
  do {
    index = forward_once(index);
  } while (index >= size_);
  return index;
}

std::uint64_t Permutation::inverse(std::uint64_t value) const {
  assert(value < size_);
  do {
    value = backward_once(value);
  } while (value >= size_);
  return value;
}

// Even rounds change the high half by a function of the low one, odd rounds the other way round: each undoes itself.
std::uint64_t Permutation::forward_once(std::uint64_t x) const {
  std::uint64_t low = x & low_mask_;
  std::uint64_t high = x >> low_bits_;
  for (std::size_t round = 0; round < kRounds; round += 2) {
    high ^= mix64(low ^ keys_[round]) & high_mask_;
    low ^= mix64(high ^ keys_[round + 1]) & low_mask_;
  }
  return (high << low_bits_) | low;
}

std::uint64_t Permutation::backward_once(std::uint64_t x) const {
  std::uint64_t low = x & low_mask_;
  std::uint64_t high = x >> low_bits_;
  for (std::size_t round = kRounds; round > 0; round -= 2) {
    low ^= mix64(high ^ keys_[round - 1]) & low_mask_;
    high ^= mix64(low ^ keys_[round - 2]) & high_mask_;
  }
  return (high << low_bits_) | low;
}

}  // namespace lockstep
