// A keyed pseudo-random permutation of [0, n), computed per index: nothing is stored, so nothing has to be skipped.
//
// Method: a Feistel network on the k bits that n - 1 needs, its round function a 64-bit mixer keyed per round (Luby and
// Rackoff, "How to construct pseudorandom permutations from pseudorandom functions", 1988); results outside [0, n) are
// sent through again until they fall inside (cycle walking: Black and Rogaway, "Ciphers with arbitrary finite domains",
// CT-RSA 2002). 2^k < 2n, so fewer than two passes are expected; for n up to 512, where a network that narrow could not
// reach most permutations, k is 10 and more passes are needed. Not for secrets.
#pragma once

#include <array>
#include <cstdint>

#include "base/random.h"

namespace lockstep {

class Permutation {
 public:
  // `size` in [1, 2^63].
  Permutation(std::uint64_t size, RandomKey key);

  [[nodiscard]] std::uint64_t size() const { return size_; }
  // index < size(); so is the result. Each result belongs to one index.
  [[nodiscard]] std::uint64_t operator()(std::uint64_t index) const;
  // inverse((*this)(i)) == i.
  [[nodiscard]] std::uint64_t inverse(std::uint64_t value) const;

 private:
  static constexpr int kRounds = 8;

  [[nodiscard]] std::uint64_t forward_once(std::uint64_t x) const;
  [[nodiscard]] std::uint64_t backward_once(std::uint64_t x) const;

  std::uint64_t size_;
  int low_bits_;
  std::uint64_t low_mask_;
  std::uint64_t high_mask_;
  std::array<std::uint64_t, kRounds> keys_;
};

}  // namespace lockstep
