#include "data/permutation.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <vector>

namespace lockstep {
namespace {

TEST(PermutationTest, GivesEachValueOnceForEverySizeUpToAThousand) {
  for (std::uint64_t size = 1; size <= 1000; ++size) {
    const Permutation permutation(size, random_key(7, RandomUse::kSampleOrder, size));
    std::vector<bool> seen(size, false);
    for (std::uint64_t i = 0; i < size; ++i) {
      const std::uint64_t value = permutation(i);
      ASSERT_LT(value, size);
      ASSERT_FALSE(seen[value]) << "size " << size << ", value " << value;
      seen[value] = true;
    }
  }
}

TEST(PermutationTest, GivesEachValueOnceAroundPowersOfTwo) {
  for (const std::uint64_t size : {65535U, 65536U, 65537U, 131071U, 262145U}) {
    const Permutation permutation(size, {1, 2});
    std::vector<bool> seen(size, false);
    for (std::uint64_t i = 0; i < size; ++i) {
      const std::uint64_t value = permutation(i);
      ASSERT_LT(value, size);
      ASSERT_FALSE(seen[value]) << "size " << size << ", value " << value;
      seen[value] = true;
    }
  }
}

TEST(PermutationTest, IsUndoneByItsInverseOnSizesTooLargeToTryOut) {
  const std::vector<std::uint64_t> sizes = {1'000'000'007, (std::uint64_t{1} << 40) + 1, (std::uint64_t{1} << 62) - 3,
                                            std::uint64_t{1} << 63};
  for (const std::uint64_t size : sizes) {
    const Permutation permutation(size, {3, 4});
    for (std::uint64_t i = 0; i < 2000; ++i) {
      const std::uint64_t index = mix64(i) % size;
      const std::uint64_t value = permutation(index);
      ASSERT_LT(value, size);
      ASSERT_EQ(permutation.inverse(value), index);
      ASSERT_EQ(permutation(permutation.inverse(index)), index);
    }
  }
}

TEST(PermutationTest, DependsOnItsKey) {
  const Permutation a(1000, random_key(1, RandomUse::kSampleOrder, 0));
  const Permutation b(1000, random_key(1, RandomUse::kSampleOrder, 1));
  int equal = 0;
  for (std::uint64_t i = 0; i < 1000; ++i) {
    equal += a(i) == b(i) ? 1 : 0;
  }
  EXPECT_LT(equal, 10);  // 1 is expected of two random permutations
}

// The sample order of every run ever made rests on these.
TEST(PermutationTest, KeepsItsValues) {
  const Permutation permutation(10, random_key(1337, RandomUse::kSampleOrder, 0));
  std::vector<std::uint64_t> values;
  for (std::uint64_t i = 0; i < 10; ++i) {
    values.push_back(permutation(i));
  }
  EXPECT_EQ(values, (std::vector<std::uint64_t>{9, 2, 8, 1, 7, 5, 3, 4, 0, 6}));
  EXPECT_EQ(Permutation(1'000'000'007, {5, 6})(123'456'789), 92780711);
}

TEST(PermutationTest, PutsEveryValueEverywhereEquallyOften) {
  constexpr std::uint64_t kSize = 5;
  constexpr int kKeys = 20'000;
  std::map<std::pair<std::uint64_t, std::uint64_t>, int> counts;
  for (int key = 0; key < kKeys; ++key) {
    const Permutation permutation(kSize, random_key(static_cast<std::uint64_t>(key), RandomUse::kSampleOrder));
    for (std::uint64_t i = 0; i < kSize; ++i) {
      ++counts[{i, permutation(i)}];
    }
  }
  for (const auto& [place, count] : counts) {
    EXPECT_NEAR(count, kKeys / 5, 300) << place.first << " -> " << place.second;  // 5 standard deviations
  }
  EXPECT_EQ(counts.size(), kSize * kSize);
}

}  // namespace
}  // namespace lockstep
