#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "base/error.h"
#include "comm/communicator.h"
#include "comm/sum_tree.h"
#include "tests/comm/tree_reference.h"

namespace lockstep {
namespace {

constexpr std::size_t kSizes[] = {0, 1, 3, 10, 1000, 65537, 1'200'003};

// The parameter is comm.ranks_per_node: 0 sums in shared memory alone, 1 by messages alone, 2 by both.
class AllReduceTest : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    comm_ = make_communicator({.backend = "mpi", .ranks_per_node = GetParam(), .timeout_ms = 30'000});
  }
  void TearDown() override {
    if (!HasFailure()) {
      comm_->close();
    }
  }

  template <typename T>
  [[nodiscard]] std::vector<T> my_values(std::size_t count) const {
    return test::leaf_values<T>(comm_->rank(), count);
  }
  // The plain sum takes longer than everything else here, so it is made once for each size.
  template <typename T>
  [[nodiscard]] const std::vector<T>& expected(std::size_t count) const {
    static std::map<std::size_t, std::vector<T>> known;
    std::vector<T>& sums = known[count];
    if (sums.empty()) {
      std::vector<std::vector<T>> leaves;
      for (int rank = 0; rank < comm_->world_size(); ++rank) {
        leaves.push_back(test::leaf_values<T>(rank, count));
      }
      sums = test::reference_sum(leaves);
    }
    return sums;
  }

  template <typename T>
  void sum_in_allocated_memory() {
    for (const std::size_t count : kSizes) {
      const Buffer buffer = comm_->allocate(count * sizeof(T));
      const std::span<T> values = buffer.as<T>(count);
      EXPECT_TRUE(std::all_of(values.begin(), values.end(), [](T value) { return value == 0; }));
      const std::vector<T> mine = my_values<T>(count);
      std::copy(mine.begin(), mine.end(), values.begin());
      comm_->all_reduce_sum(view_of(values)).wait();
      EXPECT_TRUE(test::same_bits(values, expected<T>(count))) << count << " elements";
    }
  }

  template <typename T>
  void sum_in_foreign_memory() {
    for (const std::size_t count : kSizes) {
      std::vector<T> values = my_values<T>(count);
      comm_->all_reduce_sum(view_of(std::span(values))).wait();
      EXPECT_TRUE(test::same_bits(values, expected<T>(count))) << count << " elements";
    }
  }

  std::unique_ptr<Communicator> comm_;
};

TEST_P(AllReduceTest, LeavesTheTreeSumOnEveryRank) {
  sum_in_allocated_memory<float>();
  sum_in_allocated_memory<double>();
}

TEST_P(AllReduceTest, LeavesTheTreeSumInMemoryThatItDidNotAllocate) {
  sum_in_foreign_memory<float>();
  sum_in_foreign_memory<double>();
}

TEST_P(AllReduceTest, SumsRangesOfABufferAndTouchesNothingElse) {
  constexpr std::size_t kCount = 300'000;
  const Buffer buffer = comm_->allocate(kCount * sizeof(float));
  const std::span<float> values = buffer.as<float>(kCount);
  const std::vector<float> sums = expected<float>(kCount);
  for (const auto& [begin, length] : std::vector<std::pair<std::size_t, std::size_t>>{
           {0, 5}, {1, 1}, {7, 1000}, {kCount - 3, 3}, {12'345, 200'001}}) {
    std::vector<float> after = my_values<float>(kCount);
    std::copy(after.begin(), after.end(), values.begin());
    comm_->all_reduce_sum(view_of(values).slice(begin, length)).wait();
    std::copy_n(sums.begin() + static_cast<std::ptrdiff_t>(begin), length,
                after.begin() + static_cast<std::ptrdiff_t>(begin));
    EXPECT_TRUE(test::same_bits(values, after)) << "[" << begin << ", " << begin + length << ")";
    comm_->barrier();
  }
}

TEST_P(AllReduceTest, SumsWhereOnlySomeRanksUseAllocatedMemory) {
  constexpr std::size_t kCount = 400'003;
  const Buffer buffer = comm_->allocate(kCount * sizeof(float));
  std::vector<float> elsewhere(kCount);
  for (const int allocated_of_three : {1, 2}) {
    const bool allocated = comm_->rank() % 3 < allocated_of_three;
    const std::span<float> values = allocated ? buffer.as<float>(kCount) : std::span(elsewhere);
    const std::vector<float> mine = my_values<float>(kCount);
    std::copy(mine.begin(), mine.end(), values.begin());
    comm_->all_reduce_sum(view_of(values)).wait();
    EXPECT_TRUE(test::same_bits(values, expected<float>(kCount)));
  }
}

TEST_P(AllReduceTest, RunsSeveralAtATime) {
  constexpr std::size_t kBuckets = 20;
  constexpr std::size_t kBucket = 30'000;
  const Buffer buffer = comm_->allocate(kBuckets * kBucket * sizeof(float));
  const std::span<float> values = buffer.as<float>(kBuckets * kBucket);
  const std::vector<float> mine = my_values<float>(values.size());
  const std::vector<float> sums = expected<float>(values.size());
  for (int round = 0; round < 3; ++round) {
    std::copy(mine.begin(), mine.end(), values.begin());
    comm_->barrier();
    std::vector<Work> works;
    for (std::size_t b = kBuckets; b-- > 0;) {
      works.push_back(comm_->all_reduce_sum(view_of(values).slice(b * kBucket, kBucket)));
    }
    for (Work& work : works) {
      work.wait();
      EXPECT_TRUE(work.is_done());
    }
    EXPECT_TRUE(test::same_bits(values, sums));
  }
}

TEST_P(AllReduceTest, ProceedsWhileTheCallerComputes) {
  std::vector<float> values = my_values<float>(2'000'000);
  const Work work = comm_->all_reduce_sum(view_of(std::span(values)));
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!work.is_done() && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::yield();
  }
  EXPECT_TRUE(work.is_done());
  EXPECT_TRUE(test::same_bits(values, expected<float>(values.size())));
}

TEST_P(AllReduceTest, IsFinishedWhenItsHandleIsGone) {
  std::vector<float> values = my_values<float>(100'000);
  { const Work work = comm_->all_reduce_sum(view_of(std::span(values))); }
  EXPECT_TRUE(test::same_bits(values, expected<float>(values.size())));
}

TEST_P(AllReduceTest, ReusesMemoryAsBuffersComeAndGo) {
  std::vector<Buffer> kept;
  for (int i = 0; i < 12; ++i) {
    constexpr std::size_t kCount = 10'000;
    Buffer buffer = comm_->allocate(kCount * sizeof(float));
    const std::vector<float> mine = my_values<float>(kCount);
    std::copy(mine.begin(), mine.end(), buffer.as<float>(kCount).begin());
    comm_->all_reduce_sum(view_of(buffer.as<float>(kCount))).wait();
    EXPECT_TRUE(test::same_bits(buffer.as<float>(kCount), expected<float>(kCount)));
    // Ranks let go of their buffers at different times.
    if (i % 3 == comm_->rank() % 3) {
      kept.push_back(std::move(buffer));
    }
  }
  kept.clear();
}

// Cut unevenly, with ranks that own nothing.
std::vector<ElementRange> uneven_ranges(int world, std::size_t count) {
  std::vector<ElementRange> ranges;
  std::uint64_t begin = 0;
  for (int rank = 0; rank < world; ++rank) {
    const std::uint64_t left = count - begin;
    const std::uint64_t size = rank + 1 == world ? left : rank % 3 == 1 ? 0 : left / 2 + left % 2;
    ranges.push_back({begin, begin + size});
    begin += size;
  }
  return ranges;
}

TEST_P(AllReduceTest, ReduceScatterGivesEachRankItsPartOfTheSum) {
  for (const bool allocated : {true, false}) {
    for (const std::size_t count : kSizes) {
      SCOPED_TRACE(std::to_string(count) + (allocated ? " allocated" : " elsewhere"));
      const std::vector<ElementRange> owned = uneven_ranges(comm_->world_size(), count);
      const Buffer buffer = comm_->allocate(count * sizeof(float));
      std::vector<float> values = my_values<float>(count);
      std::span<float> data(values);
      if (allocated) {
        data = buffer.as<float>(count);
        std::copy(values.begin(), values.end(), data.begin());
      }
      comm_->reduce_scatter_sum(view_of(data), owned).wait();
      const ElementRange mine = owned[static_cast<std::size_t>(comm_->rank())];
      const std::vector<float>& sums = expected<float>(count);
      EXPECT_TRUE(
          test::same_bits(data.subspan(mine.begin, mine.size()), std::span(sums).subspan(mine.begin, mine.size())));
    }
  }
}

TEST_P(AllReduceTest, AllGatherGivesEveryRankTheOthersRangesAndChangesNothingElse) {
  constexpr float kUntouched = 0.5F;
  for (const bool allocated : {true, false}) {
    for (const std::size_t count : kSizes) {
      SCOPED_TRACE(std::to_string(count) + (allocated ? " allocated" : " elsewhere"));
      std::vector<ElementRange> owned = uneven_ranges(comm_->world_size(), count);
      std::vector<float> wanted(count, kUntouched);
      for (std::size_t rank = 0; rank < owned.size(); ++rank) {
        if (owned[rank].size() > 2) {
          --owned[rank].end;  // gaps between the ranges
        }
        const std::vector<float> values = test::leaf_values<float>(static_cast<int>(rank), count);
        std::copy(values.begin() + static_cast<std::ptrdiff_t>(owned[rank].begin),
                  values.begin() + static_cast<std::ptrdiff_t>(owned[rank].end),
                  wanted.begin() + static_cast<std::ptrdiff_t>(owned[rank].begin));
      }
      const Buffer buffer = comm_->allocate(count * sizeof(float));
      std::vector<float> elsewhere(count);
      const std::span<float> data = allocated ? buffer.as<float>(count) : std::span(elsewhere);
      std::fill(data.begin(), data.end(), kUntouched);
      const ElementRange mine = owned[static_cast<std::size_t>(comm_->rank())];
      const std::vector<float> values = my_values<float>(count);
      std::copy(values.begin() + static_cast<std::ptrdiff_t>(mine.begin),
                values.begin() + static_cast<std::ptrdiff_t>(mine.end),
                data.begin() + static_cast<std::ptrdiff_t>(mine.begin));
      comm_->all_gather_ranges(view_of(data), owned).wait();
      EXPECT_TRUE(test::same_bits(data, wanted));
    }
  }
}

TEST_P(AllReduceTest, RefusesRangesThatDoNotFit) {
  std::vector<float> values(100);
  const BufferView data = view_of(std::span(values));
  std::vector<ElementRange> owned = uneven_ranges(comm_->world_size(), values.size());
  const auto refuses = [&](const std::vector<ElementRange>& ranges) {
    EXPECT_THROW(static_cast<void>(comm_->reduce_scatter_sum(data, ranges)), Error);
  };
  refuses({});
  --owned.back().end;
  refuses(owned);  // an element that nobody owns
  owned.back().end = values.size() + 1;
  refuses(owned);
  EXPECT_THROW(static_cast<void>(comm_->all_gather_ranges(data, owned)), Error);
}

// 8 micro-batches in order at the leaves, each rank adding its own by the same tree: the promise of determinism:
// elastic.
TEST_P(AllReduceTest, GivesTheSameBitsOnAnyNumberOfRanks) {
  constexpr int kLeaves = 8;
  constexpr std::size_t kCount = 5'000;
  if (kLeaves % comm_->world_size() != 0) {
    return;
  }
  std::vector<std::vector<float>> leaves;
  for (int leaf = 0; leaf < kLeaves; ++leaf) {
    leaves.push_back(test::leaf_values<float>(leaf, kCount));
  }
  const int own_leaves = kLeaves / comm_->world_size();
  const auto first = leaves.begin() + comm_->rank() * own_leaves;
  std::vector<float> values = test::reference_sum(std::vector(first, first + own_leaves));
  comm_->all_reduce_sum(view_of(std::span(values))).wait();
  EXPECT_TRUE(test::same_bits(values, test::reference_sum(leaves)));
}

TEST_P(AllReduceTest, RefusesASecondCommunicatorAndBadArguments) {
  EXPECT_THROW(static_cast<void>(make_communicator({.backend = "mpi"})), Error);
  std::vector<int> integers(3);
  EXPECT_THROW(static_cast<void>(comm_->all_reduce_sum({integers.data(), 3, DType::kI32, Device{}})), Error);
  std::vector<float> values = my_values<float>(10);
  comm_->all_reduce_sum(view_of(std::span(values))).wait();
  EXPECT_TRUE(test::same_bits(values, expected<float>(10)));
}

INSTANTIATE_TEST_SUITE_P(RanksPerNode, AllReduceTest, testing::Values(0, 1, 2, 3), testing::PrintToStringParamName());

}  // namespace
}  // namespace lockstep
