#include "base/random.h"

namespace lockstep {

RandomKey random_key(std::uint64_t seed, RandomUse use, std::uint64_t a, std::uint64_t b) {
  const std::uint64_t mixed = mix64(mix64(mix64(mix64(seed) ^ static_cast<std::uint64_t>(use)) ^ a) ^ b);
  return {static_cast<std::uint32_t>(mixed), static_cast<std::uint32_t>(mixed >> 32)};
}

}  // namespace lockstep
