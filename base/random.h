// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//
// A value is a pure function of (key, counter). Nothing is stored, so nothing has to be saved, and any rank can compute
// any value. Keys come from random_key(), which separates the uses of one seed from each other.
#pragma once

#include <array>
#include <cstdint>

namespace lockstep {

// What random numbers are drawn for; part of every key, so that uses never share a stream.
enum class RandomUse : std::uint32_t {
  kSampleOrder = 1,
  kDropout = 2,
  kInitialization = 3,
  kGeneration = 4,
  kSplit = 5,
  kAdapterDropout = 6,
  kEmbeddingNoise = 7,
};

struct RandomKey {
  std::uint32_t k0 = 0;
  std::uint32_t k1 = 0;
};

// Mixes a seed, a use and two further integers (step and micro-batch, epoch, site, ...) into a key.
[[nodiscard]] RandomKey random_key(std::uint64_t seed, RandomUse use, std::uint64_t a = 0, std::uint64_t b = 0);

// Four random words for a counter.
[[nodiscard]] constexpr std::array<std::uint32_t, 4> philox(RandomKey key, std::uint64_t counter) {
  std::array<std::uint32_t, 4> c = {static_cast<std::uint32_t>(counter), static_cast<std::uint32_t>(counter >> 32), 0,
                                    0};
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53U} * c[0];
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57U} * c[2];
    c = {static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ key.k0, static_cast<std::uint32_t>(p1),
         static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ key.k1, static_cast<std::uint32_t>(p0)};
    key.k0 += 0x9E3779B9U;
    key.k1 += 0xBB67AE85U;
  }
  return c;
}

// Uniform in [0, 1), 24 bits.
[[nodiscard]] constexpr float uniform_float(std::uint32_t word) { return static_cast<float>(word >> 8) * 0x1p-24F; }

// Uniform in [0, 1), 53 bits.
[[nodiscard]] constexpr double uniform_double(std::uint32_t high, std::uint32_t low) {
  return static_cast<double>(((std::uint64_t{high} << 32) | low) >> 11) * 0x1p-53;
}

// Mixes 64 bits so that every input bit moves every output bit (splitmix64's finalizer).
[[nodiscard]] constexpr std::uint64_t mix64(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15U;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBU;
  return x ^ (x >> 31);
}

}  // namespace lockstep
