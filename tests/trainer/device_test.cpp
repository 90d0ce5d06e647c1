// Which rank gets which GPU, without GPUs; and memory of a device on its way through the host.
#include "trainer/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/cuda/devices.h"
#include "base/error.h"
#include "comm/self_communicator.h"

namespace lockstep {
namespace {

using testing::ElementsAre;

std::vector<RankGpus> ranks_on(const std::vector<std::pair<std::string, std::vector<std::string>>>& ranks) {
  std::vector<RankGpus> result;
  for (const auto& [host, bus_ids] : ranks) {
    result.push_back({host, bus_ids});
  }
  return result;
}

TEST(AssignGpus, GivesEachRankOfAHostItsOwnInTheirOrder) {
  const auto assignment =
      assign_gpus(ranks_on({{"a", {"1", "2"}}, {"a", {"1", "2"}}, {"b", {"1", "2"}}, {"b", {"1", "2"}}}));
  EXPECT_THAT(assignment.index, ElementsAre(0, 1, 0, 1));
  EXPECT_FALSE(assignment.is_shared);
}

TEST(AssignGpus, TakesHostsInAnyOrder) {
  const auto assignment = assign_gpus(ranks_on({{"a", {"1", "2"}}, {"b", {"1"}}, {"a", {"1", "2"}}}));
  EXPECT_THAT(assignment.index, ElementsAre(0, 0, 1));
  EXPECT_FALSE(assignment.is_shared);
}

// As Slurm's --gpus-per-task does: each rank sees its own alone, as number 0.
TEST(AssignGpus, KnowsGpusByTheirBusIdsWhenEachRankSeesItsOwnOnly) {
  const auto assignment = assign_gpus(ranks_on({{"a", {"1"}}, {"a", {"2"}}}));
  EXPECT_THAT(assignment.index, ElementsAre(0, 0));
  EXPECT_FALSE(assignment.is_shared);
}

TEST(AssignGpus, SharesEvenlyWhereThereAreTooFewAndSaysSo) {
  const auto assignment =
      assign_gpus(ranks_on({{"a", {"1", "2"}}, {"a", {"1", "2"}}, {"a", {"1", "2"}}, {"a", {"1", "2"}}}));
  EXPECT_THAT(assignment.index, ElementsAre(0, 1, 0, 1));
  EXPECT_TRUE(assignment.is_shared);
}

TEST(AssignGpus, LeavesRanksWithoutAnyOut) {
  EXPECT_THAT(assign_gpus(ranks_on({{"a", {}}, {"b", {"1"}}})).index, ElementsAre(-1, 0));
}

TEST(ChooseDevice, TakesTheCpuWhenItIsTold) {
  SelfCommunicator alone;
  EXPECT_EQ(choose_device({.kind = DeviceWish::kCpu}, Precision::kBf16, alone).device.kind, DeviceKind::kCpu);
}

TEST(ChooseDevice, SaysWhyThereIsNoGpu) {
  const cuda::DeviceList list = cuda::list_devices();
  if (list.problem.empty()) {
    GTEST_SKIP() << "there is a GPU";
  }
  SelfCommunicator alone;
  EXPECT_EQ(choose_device({.kind = DeviceWish::kAuto}, Precision::kFp32, alone).device.kind, DeviceKind::kCpu);
  try {
    static_cast<void>(choose_device({.kind = DeviceWish::kCuda}, Precision::kFp32, alone));
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
    EXPECT_THAT(error.what(),
                testing::AllOf(testing::StartsWith("device: cuda: rank 0 on "), testing::EndsWith(list.problem)));
  }
}

TEST(StatedPeak, TakesTheMostPreciseNameAndKnowsNoOther) {
  EXPECT_EQ(stated_peak_flop_per_s("NVIDIA H100 80GB HBM3", DType::kBF16, false), 989e12);
  EXPECT_EQ(stated_peak_flop_per_s("NVIDIA H100 PCIe", DType::kBF16, false), 756e12);
  EXPECT_EQ(stated_peak_flop_per_s("NVIDIA H200", DType::kF32, false), 67e12);
  EXPECT_EQ(stated_peak_flop_per_s("NVIDIA H200", DType::kF32, true), 494.5e12);
  EXPECT_EQ(stated_peak_flop_per_s("NVIDIA H200", DType::kBF16, true), 989e12);
  EXPECT_EQ(stated_peak_flop_per_s("NVIDIA A100-SXM4-40GB", DType::kBF16, false), 312e12);
  EXPECT_EQ(stated_peak_flop_per_s("NVIDIA GH200 480GB", DType::kBF16, false), 989e12);
  EXPECT_EQ(stated_peak_flop_per_s("NVIDIA A100-SXM4-40GB", DType::kF16, false), 312e12);
  EXPECT_EQ(stated_peak_flop_per_s("Tesla T4", DType::kF16, false), 65e12);
  EXPECT_EQ(stated_peak_flop_per_s("Tesla T4", DType::kF32, true), 8.1e12);
  EXPECT_EQ(stated_peak_flop_per_s("a card of tomorrow", DType::kBF16, false), 0);
}

}  // namespace
}  // namespace lockstep
