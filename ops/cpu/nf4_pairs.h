// The two values of each byte of NF4 codes.
#pragma once

#include <array>

#include "ops/packed.h"

namespace lockstep::cpu {

struct Nf4Pair {
  float low = 0;
  float high = 0;
};

inline constexpr std::array<Nf4Pair, 256> kNf4Pairs = [] {
  std::array<Nf4Pair, 256> pairs;
  for (std::size_t code = 0; code < pairs.size(); ++code) {
    pairs[code] = {kNf4Levels[code & 15], kNf4Levels[code >> 4]};
  }
  return pairs;
}();

}  // namespace lockstep::cpu
