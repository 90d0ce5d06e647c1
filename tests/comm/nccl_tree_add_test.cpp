// The kernel that adds along the tree, against the processor's tree_sum(). Needs a GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "comm/nccl/tree_add.h"
#include "comm/sum_tree.h"
#include "tests/comm/nccl_device_array.h"
#include "tests/comm/tree_reference.h"

namespace lockstep::nccl {
namespace {

constexpr std::size_t kCounts[] = {1, 3, 4, 5, 127, 1000, 65'537, 1'000'003};

template <typename T>
std::vector<T> cpu_sum(const std::vector<std::vector<T>>& leaves) {
  std::vector<const std::byte*> sources;
  for (const std::vector<T>& leaf : leaves) {
    sources.push_back(reinterpret_cast<const std::byte*>(leaf.data()));
  }
  std::vector<T> sum(leaves[0].size());
  const std::vector<std::byte*> destinations = {reinterpret_cast<std::byte*>(sum.data())};
  tree_sum(sources, destinations, sum.size(), kDTypeOf<T>);
  return sum;
}

// The parameter is the number of sources.
class NcclTreeAddTest : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    if (const std::string problem = test::no_gpu(); !problem.empty()) {
      GTEST_SKIP() << problem;
    }
    cuda::use_device(0);
  }

  // Source k lies offset_of(k) elements behind an aligned address. Returns the sum as the kernel leaves it in a
  // destination of its own, `offset` elements behind one.
  template <typename T, typename OffsetOf>
  static std::vector<T> gpu_sum(const std::vector<std::vector<T>>& leaves, const OffsetOf& offset_of,
                                std::size_t offset) {
    std::vector<test::DeviceArray<T>> arrays;
    std::vector<void*> sources;
    for (std::size_t k = 0; k < leaves.size(); ++k) {
      sources.push_back(arrays.emplace_back(leaves[k], offset_of(k)).data());
    }
    const test::DeviceArray<T> destination(std::vector<T>(leaves[0].size()), offset);
    tree_add(sources, destination.data(), leaves[0].size(), kDTypeOf<T>, cuda::compute_stream().get());
    return destination.get();
  }

  template <typename T>
  static std::vector<std::vector<T>> leaves(std::size_t count) {
    std::vector<std::vector<T>> all;
    for (int leaf = 0; leaf < GetParam(); ++leaf) {
      all.push_back(test::leaf_values<T>(leaf, count));
    }
    return all;
  }

  template <typename T>
  static void expect_same_bits_as_on_the_cpu() {
    for (const std::size_t count : kCounts) {
      if (count * static_cast<std::size_t>(GetParam()) > 20'000'000) {
        continue;
      }
      const std::vector<std::vector<T>> sources = leaves<T>(count);
      const std::vector<T> expected = cpu_sum(sources);
      const auto aligned = [](std::size_t) { return std::size_t{0}; };
      const auto alike = [](std::size_t) { return std::size_t{1}; };
      const auto mixed = [](std::size_t k) { return k % 4; };
      EXPECT_TRUE(test::same_bits(gpu_sum(sources, aligned, 0), expected)) << count << ", aligned";
      EXPECT_TRUE(test::same_bits(gpu_sum(sources, alike, 1), expected)) << count << ", all one element behind";
      EXPECT_TRUE(test::same_bits(gpu_sum(sources, mixed, 3), expected)) << count << ", at mixed offsets";
    }
  }
};

TEST_P(NcclTreeAddTest, GivesTheBitsOfTheProcessor) {
  expect_same_bits_as_on_the_cpu<float>();
  expect_same_bits_as_on_the_cpu<double>();
}

TEST_P(NcclTreeAddTest, MayReplaceAnyOfItsSources) {
  constexpr std::size_t kCount = 10'001;
  const std::vector<std::vector<float>> values = leaves<float>(kCount);
  const std::vector<float> expected = cpu_sum(values);
  for (const std::size_t replaced : {std::size_t{0}, values.size() / 2, values.size() - 1}) {
    std::vector<test::DeviceArray<float>> arrays;
    std::vector<void*> sources;
    for (const std::vector<float>& leaf : values) {
      sources.push_back(arrays.emplace_back(leaf).data());
    }
    tree_add(sources, sources[replaced], kCount, DType::kF32, cuda::compute_stream().get());
    EXPECT_TRUE(test::same_bits(arrays[replaced].get(), expected)) << "source " << replaced;
  }
}

TEST_P(NcclTreeAddTest, WritesNothingBesideItsElements) {
  const std::vector<std::vector<float>> values = leaves<float>(1000);
  std::vector<test::DeviceArray<float>> arrays;
  std::vector<void*> sources;
  for (const std::vector<float>& leaf : values) {
    sources.push_back(arrays.emplace_back(leaf).data());
  }
  std::vector<float> expected(1000, 7);
  const test::DeviceArray<float> destination(expected);
  tree_add(sources, destination.data() + 3, 501, DType::kF32, cuda::compute_stream().get());
  tree_add(sources, destination.data() + 800, 0, DType::kF32, cuda::compute_stream().get());
  const std::vector<float> sum = cpu_sum(values);
  std::copy_n(sum.begin(), 501, expected.begin() + 3);
  EXPECT_TRUE(test::same_bits(destination.get(), expected));
}

TEST_P(NcclTreeAddTest, AddsNoZeroForAnAbsentLeafAndKeepsSmallNumbers) {
  const auto sources = static_cast<std::size_t>(GetParam());
  const std::vector<float> sum = gpu_sum(
      std::vector<std::vector<float>>(sources, {-0.0F, 1e-45F}), [](std::size_t) { return std::size_t{0}; }, 0);
  EXPECT_TRUE(std::signbit(sum[0]));
  EXPECT_EQ(sum[1], 1e-45F * static_cast<float>(GetParam())) << "a subnormal number became zero";
}

INSTANTIATE_TEST_SUITE_P(Sources, NcclTreeAddTest, testing::Values(1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 31, 32, 64, 65, 130),
                         testing::PrintToStringParamName());

}  // namespace
}  // namespace lockstep::nccl
