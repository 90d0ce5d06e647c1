#include "comm/sum_tree.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <string>

#include "base/error.h"
#include "tests/comm/tree_reference.h"

namespace lockstep {
namespace {

template <typename T>
std::vector<const std::byte*> bytes_of(const std::vector<std::vector<T>>& arrays) {
  std::vector<const std::byte*> bytes;
  for (const auto& array : arrays) {
    bytes.push_back(reinterpret_cast<const std::byte*>(array.data()));
  }
  return bytes;
}

template <typename T>
std::vector<T> sum_of(const std::vector<std::vector<T>>& leaves) {
  std::vector<T> result(leaves.front().size());
  std::vector<std::byte*> destinations = {reinterpret_cast<std::byte*>(result.data())};
  tree_sum(bytes_of(leaves), destinations, result.size(), kDTypeOf<T>);
  return result;
}

TEST(TreeStepsTest, AddNeighboursFirst) {
  EXPECT_EQ(tree_steps(8), (std::vector<TreeStep>{{0, 1}, {2, 3}, {4, 5}, {6, 7}, {0, 2}, {4, 6}, {0, 4}}));
}

TEST(TreeStepsTest, LeaveAbsentLeavesOut) {
  EXPECT_EQ(tree_steps(6), (std::vector<TreeStep>{{0, 1}, {2, 3}, {4, 5}, {0, 2}, {0, 4}}));
  EXPECT_EQ(tree_steps(7), (std::vector<TreeStep>{{0, 1}, {2, 3}, {4, 5}, {0, 2}, {4, 6}, {0, 4}}));
}

TEST(TreeStepsTest, AreNoneForOneLeaf) { EXPECT_TRUE(tree_steps(1).empty()); }

// In single precision 1e8 + 1 is 1e8, so these sums show which numbers met first.
TEST(TreeSumTest, AddsPairsBeforePairsOfPairs) {
  EXPECT_EQ(sum_of<float>({{1e8F}, {1}, {-1e8F}, {1}}), std::vector<float>{0});       // (1e8 + 1) + (-1e8 + 1)
  EXPECT_EQ(sum_of<float>({{1e8F}, {-1e8F}, {1}, {1}}), std::vector<float>{2});       // (1e8 - 1e8) + (1 + 1)
  EXPECT_EQ(sum_of<float>({{1}, {1}, {1e8F}, {-1e8F}}), std::vector<float>{2});       // (1 + 1) + (1e8 - 1e8)
  EXPECT_EQ(sum_of<float>({{1e8F}, {5}, {5}, {-1e8F}}), std::vector<float>{16});      // 100000008 - 99999992
  EXPECT_EQ(sum_of<float>({{1e8F}, {1}, {-1e8F}}), std::vector<float>{0});            // (1e8 + 1) + -1e8
  EXPECT_EQ(sum_of<float>({{1}, {1e8F}, {-1e8F}, {1}, {3}}), std::vector<float>{3});  // ((1 + 1e8) + (-1e8 + 1)) + 3
}

TEST(TreeSumTest, TreatsEveryElementAlike) {
  const std::vector<std::vector<double>> leaves = {
      {1e16, 1, -0.0}, {1, 1e16, -0.0}, {-1e16, 1, -0.0}, {1, -1e16, -0.0}};
  const std::vector<double> sum = sum_of(leaves);
  EXPECT_EQ(sum[0], 0);
  EXPECT_EQ(sum[1], 0);
  EXPECT_EQ(sum[2], 0);
  EXPECT_TRUE(std::signbit(sum[2])) << "an absent or padding zero took part";
}

TEST(TreeSumTest, KeepsTheSignOfALoneZero) { EXPECT_TRUE(std::signbit(sum_of<float>({{-0.0F}})[0])); }

class TreeSumShapeTest : public testing::TestWithParam<int> {};

TEST_P(TreeSumShapeTest, GivesTheBitsOfTheRecursiveDefinition) {
  for (const std::size_t count : {0U, 1U, 3U, 15U, 16U, 17U, 511U, 512U, 513U, 2000U}) {
    std::vector<std::vector<float>> floats;
    std::vector<std::vector<double>> doubles;
    for (int leaf = 0; leaf < GetParam(); ++leaf) {
      floats.push_back(test::leaf_values<float>(leaf, count));
      doubles.push_back(test::leaf_values<double>(leaf, count));
    }
    EXPECT_TRUE(test::same_bits(sum_of(floats), test::reference_sum(floats))) << count << " floats";
    EXPECT_TRUE(test::same_bits(sum_of(doubles), test::reference_sum(doubles))) << count << " doubles";
  }
}

TEST_P(TreeSumShapeTest, MayReplaceAllSourcesAtOnce) {
  constexpr std::size_t kCount = 1003;
  std::vector<std::vector<float>> arrays;
  for (int leaf = 0; leaf < GetParam(); ++leaf) {
    arrays.push_back(test::leaf_values<float>(leaf, kCount));
  }
  const std::vector<float> expected = test::reference_sum(arrays);
  std::vector<std::byte*> destinations;
  for (auto& array : arrays) {
    destinations.push_back(reinterpret_cast<std::byte*>(array.data()));
  }
  tree_sum(bytes_of(arrays), destinations, kCount, DType::kF32);
  for (const auto& array : arrays) {
    EXPECT_TRUE(test::same_bits(array, expected));
  }
}

TEST_P(TreeSumShapeTest, AgreesWithItsSteps) {
  std::vector<std::vector<float>> leaves;
  for (int leaf = 0; leaf < GetParam(); ++leaf) {
    leaves.push_back(test::leaf_values<float>(leaf, 100));
  }
  const std::vector<float> expected = sum_of(leaves);
  for (const TreeStep& step : tree_steps(GetParam())) {
    add_into(view_of(std::span(leaves[static_cast<std::size_t>(step.target)])),
             view_of(std::span(leaves[static_cast<std::size_t>(step.source)])));
  }
  EXPECT_TRUE(test::same_bits(leaves[0], expected));
}

INSTANTIATE_TEST_SUITE_P(Leaves, TreeSumShapeTest, testing::Values(1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 31, 32, 64, 100),
                         testing::PrintToStringParamName());

TEST(TreeSumTest, CutsALargerTreeAtALevel) {
  std::vector<std::vector<float>> leaves;
  for (int leaf = 0; leaf < 8; ++leaf) {
    leaves.push_back(test::leaf_values<float>(leaf, 777));
  }
  const std::vector<float> whole = sum_of(leaves);
  for (const std::size_t ranks : {1U, 2U, 4U}) {
    const std::size_t leaves_per_rank = leaves.size() / ranks;
    std::vector<std::vector<float>> partial;
    for (std::size_t r = 0; r < ranks; ++r) {
      const auto first = leaves.begin() + static_cast<std::ptrdiff_t>(r * leaves_per_rank);
      partial.push_back(sum_of(std::vector(first, first + static_cast<std::ptrdiff_t>(leaves_per_rank))));
    }
    EXPECT_TRUE(test::same_bits(sum_of(partial), whole)) << ranks << " ranks";
  }
}

TEST(AddIntoTest, AddsElementByElement) {
  std::vector<double> target = {1, 2, 3};
  std::vector<double> source = {10, 20, 30};
  add_into(view_of(std::span(target)), view_of(std::span(source)));
  EXPECT_THAT(target, testing::ElementsAre(11, 22, 33));
  EXPECT_THAT(source, testing::ElementsAre(10, 20, 30));
}

TEST(AddIntoTest, RefusesTypesWithoutATree) {
  std::vector<std::int32_t> values = {1};
  const BufferView view{values.data(), 1, DType::kI32, Device{}};
  try {
    add_into(view, view);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUsage);
    EXPECT_STREQ(error.what(), "sum: elements are i32, expected f32 or f64");
  }
}

}  // namespace
}  // namespace lockstep
