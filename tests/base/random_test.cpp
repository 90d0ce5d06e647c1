#include "base/random.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <set>

namespace lockstep {
namespace {

// The first known-answer vector of the paper's reference implementation (Random123, kat_vectors).
TEST(PhiloxTest, GivesTheReferenceWordsForZeroKeyAndCounter) {
  EXPECT_THAT(philox({0, 0}, 0), testing::ElementsAre(0x6627e8d5U, 0xe169c58dU, 0xbc57ac4cU, 0x9b00dbd8U));
}

// splitmix64 started at 0 and at 1: the first output of each.
TEST(MixTest, GivesTheReferenceValuesOfSplitmix) {
  EXPECT_EQ(mix64(0), 0xe220a8397b1dcdafU);
  EXPECT_EQ(mix64(1), 0x910a2dec89025cc1U);
}

TEST(UniformTest, StaysBelowOne) {
  EXPECT_EQ(uniform_float(0), 0.0F);
  EXPECT_EQ(uniform_float(0xffffffffU), 1.0F - 0x1p-24F);
  EXPECT_EQ(uniform_double(0, 0), 0.0);
  EXPECT_EQ(uniform_double(0xffffffffU, 0xffffffffU), 1.0 - 0x1p-53);
  EXPECT_EQ(uniform_double(0x80000000U, 0), 0.5);
}

TEST(UniformTest, HasTheMeanAndTheVarianceOfAUniformNumber) {
  const RandomKey key = random_key(1337, RandomUse::kDropout, 4, 2);
  double sum = 0;
  double squares = 0;
  constexpr int kDraws = 40000;
  for (std::uint64_t counter = 0; counter < kDraws / 4; ++counter) {
    for (const std::uint32_t word : philox(key, counter)) {
      const double value = uniform_float(word);
      sum += value;
      squares += value * value;
    }
  }
  const double mean = sum / kDraws;
  EXPECT_NEAR(mean, 0.5, 0.006);  // 4 standard errors of the mean
  EXPECT_NEAR(squares / kDraws - mean * mean, 1.0 / 12, 0.002);
}

TEST(RandomKeyTest, SeparatesSeedsUsesStepsAndMicroBatches) {
  std::set<std::uint64_t> keys;
  int count = 0;
  for (const std::uint64_t seed : {0U, 1U, 1337U}) {
    for (const RandomUse use : {RandomUse::kSampleOrder, RandomUse::kDropout, RandomUse::kInitialization,
                                RandomUse::kGeneration, RandomUse::kSplit}) {
      for (std::uint64_t a = 0; a < 20; ++a) {
        for (std::uint64_t b = 0; b < 20; ++b) {
          const RandomKey key = random_key(seed, use, a, b);
          keys.insert((std::uint64_t{key.k1} << 32) | key.k0);
          ++count;
        }
      }
    }
  }
  EXPECT_EQ(keys.size(), static_cast<std::size_t>(count));
}

TEST(PhiloxTest, ChangesAboutHalfTheBitsWhenTheCounterMovesByOne) {
  const RandomKey key = random_key(1, RandomUse::kSplit);
  int changed = 0;
  for (std::uint64_t counter = 0; counter < 100; ++counter) {
    const auto a = philox(key, counter);
    const auto b = philox(key, counter + 1);
    for (std::size_t i = 0; i < 4; ++i) {
      changed += std::popcount(a[i] ^ b[i]);
    }
  }
  EXPECT_NEAR(changed, 100 * 64, 300);
}

}  // namespace
}  // namespace lockstep
