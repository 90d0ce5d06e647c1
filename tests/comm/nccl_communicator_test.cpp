// Every call of the communicator over NCCL, by a rank that is alone: what it sums is what it had, but the bytes go
// through NCCL and the kernel all the same. Needs a GPU.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "comm/nccl/communicator.h"
#include "comm/nccl/schedule.h"
#include "comm/self_communicator.h"
#include "tests/comm/nccl_device_array.h"
#include "tests/comm/tree_reference.h"

namespace lockstep {
namespace {

using test::DeviceArray;

ErrorCode code_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.code();
  }
  ADD_FAILURE() << "no error";
  return ErrorCode::kUsage;
}

// The parameter is CommOptions::elastic.
class NcclCommunicatorTest : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    if (const std::string problem = test::no_gpu(); !problem.empty()) {
      GTEST_SKIP() << problem;
    }
    cuda::use_device(0);
    comm_ = make();
  }
  void TearDown() override {
    if (comm_) {
      comm_->close();
    }
  }

  std::unique_ptr<Communicator> make() {
    return make_nccl_communicator({.backend = "nccl", .timeout_ms = 30'000, .elastic = GetParam()}, host_);
  }

  template <typename T>
  void expect_sums_of_one() {
    // The last is beyond one slot: two rounds and a rest.
    const std::size_t many = nccl::kScratchBytes / sizeof(T) + 100'001;
    for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{3}, std::size_t{8192},
                                    std::size_t{10'007}, std::size_t{1} << 20, many}) {
      for (const std::size_t offset : {0U, 1U}) {
        const std::vector<T> values = test::leaf_values<T>(0, count);
        const DeviceArray<T> array(values, offset);
        Work work = comm_->all_reduce_sum(array.view());
        work.wait();
        EXPECT_TRUE(work.is_done());
        EXPECT_TRUE(test::same_bits(array.get(), values)) << count << " elements, " << offset << " behind";
      }
    }
  }

  SelfCommunicator host_;
  std::unique_ptr<Communicator> comm_;
};

TEST_P(NcclCommunicatorTest, SaysWhatItIs) {
  EXPECT_EQ(comm_->rank(), 0);
  EXPECT_EQ(comm_->world_size(), 1);
  EXPECT_EQ(comm_->node_size(), 1);
  EXPECT_THAT(comm_->description(), testing::MatchesRegex("nccl 2\\.[0-9]+\\.[0-9]+ over self: 1 rank"));
}

TEST_P(NcclCommunicatorTest, SumsFloats) { expect_sums_of_one<float>(); }
TEST_P(NcclCommunicatorTest, SumsDoubles) { expect_sums_of_one<double>(); }

TEST_P(NcclCommunicatorTest, ScattersSums) {
  for (const std::size_t count : {std::size_t{0}, std::size_t{5}, std::size_t{100'003}}) {
    const std::vector<float> values = test::leaf_values<float>(1, count);
    const DeviceArray<float> array(values, 1);
    const std::vector<ElementRange> owned = {{0, count}};
    comm_->reduce_scatter_sum(array.view(), owned).wait();
    EXPECT_TRUE(test::same_bits(array.get(), values)) << count;
  }
}

TEST_P(NcclCommunicatorTest, GathersRangesOfAnyType) {
  std::vector<BFloat16> numbers(1001);
  std::vector<std::uint8_t> bytes(1001);
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    numbers[i].bits = static_cast<std::uint16_t>(i * 65);
    bytes[i] = static_cast<std::uint8_t>(i * 7);
  }
  const DeviceArray<BFloat16> number_array(numbers);
  const DeviceArray<std::uint8_t> byte_array(bytes);
  for (const ElementRange range : {ElementRange{0, 1001}, ElementRange{3, 1000}, ElementRange{5, 5}}) {
    const std::vector<ElementRange> owned = {range};
    comm_->all_gather_ranges(number_array.view(), owned).wait();
    comm_->all_gather_ranges(byte_array.view(), owned).wait();
  }
  EXPECT_TRUE(test::same_bits(number_array.get(), numbers));
  EXPECT_EQ(byte_array.get(), bytes);
}

TEST_P(NcclCommunicatorTest, StartsAfterWhatTheGpuComputesAndEndsBeforeWhatFollows) {
  constexpr std::size_t kCount = 8'000'000;
  const cudaStream_t stream = cuda::compute_stream().get();
  const DeviceArray<float> result{std::vector<float>(kCount)};
  const DeviceArray<float> array{std::vector<float>(kCount)};
  std::vector<float> values = test::leaf_values<float>(2, kCount);
  for (int round = 0; round < 5; ++round) {
    values[0] = static_cast<float>(round);
    DeviceArray<float> expected(values);
    for (int copy = 0; copy < 20; ++copy) {
      cuda::check(cudaMemsetAsync(array.data(), copy, kCount * sizeof(float), stream), "test: clearing");
    }
    cuda::check(
        cudaMemcpyAsync(array.data(), expected.data(), kCount * sizeof(float), cudaMemcpyDeviceToDevice, stream),
        "test: copying");
    comm_->all_reduce_sum(array.view()).wait();
    cuda::check(cudaMemcpyAsync(result.data(), array.data(), kCount * sizeof(float), cudaMemcpyDeviceToDevice, stream),
                "test: copying");
    cuda::check(cudaMemsetAsync(array.data(), 0xff, kCount * sizeof(float), stream), "test: clearing");
    EXPECT_TRUE(test::same_bits(result.get(), values)) << "round " << round;
  }
}

TEST_P(NcclCommunicatorTest, RunsSeveralAtATime) {
  constexpr std::size_t kBuckets = 40;
  constexpr std::size_t kBucket = 30'001;
  const std::vector<float> values = test::leaf_values<float>(3, kBuckets * kBucket);
  const DeviceArray<float> array(values);
  for (int round = 0; round < 3; ++round) {
    std::vector<Work> works;
    for (std::size_t b = 0; b < kBuckets; ++b) {
      works.push_back(comm_->all_reduce_sum(array.view().slice(b * kBucket, kBucket)));
    }
    for (std::size_t b = kBuckets; b-- > 0;) {
      works[b].wait();
    }
    EXPECT_TRUE(test::same_bits(array.get(), values));
  }
}

TEST_P(NcclCommunicatorTest, TellsWhenItIsDone) {
  const DeviceArray<float> array(test::leaf_values<float>(4, 1000));
  Work work = comm_->all_reduce_sum(array.view());
  for (int i = 0; i < 10'000 && !work.is_done(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_TRUE(work.is_done());
  work.wait();
  EXPECT_TRUE(work.is_done());
}

TEST_P(NcclCommunicatorTest, WaitsForWorkThatIsDropped) {
  const std::vector<float> values = test::leaf_values<float>(5, 1'000'000);
  const DeviceArray<float> array(values);
  static_cast<void>(comm_->all_reduce_sum(array.view()));
  EXPECT_TRUE(test::same_bits(array.get(), values));
}

TEST_P(NcclCommunicatorTest, LeavesHostMemoryToTheHostCommunicator) {
  std::vector<float> values = {1, 2, 3};
  const BufferView view = view_of(std::span(values));
  const std::vector<ElementRange> owned = {{0, 3}};
  comm_->all_reduce_sum(view).wait();
  comm_->reduce_scatter_sum(view, owned).wait();
  comm_->all_gather_ranges(view, owned).wait();
  comm_->broadcast(std::as_writable_bytes(std::span(values)), 0);
  comm_->barrier();
  EXPECT_THAT(values, testing::ElementsAre(1, 2, 3));
  EXPECT_THAT(comm_->all_gather_text("abc"), testing::ElementsAre("abc"));
  EXPECT_THAT(comm_->allocate(100).as<std::uint8_t>(100), testing::Each(0));
  EXPECT_EQ(comm_->time_library_sum(view, 1), 0);
}

TEST_P(NcclCommunicatorTest, TimesTheLibrarysOwnSum) {
  const DeviceArray<float> array(std::vector<float>{1, 2, 3});
  EXPECT_GT(comm_->time_library_sum(array.view(), 3), 0);
  EXPECT_THAT(array.get(), testing::ElementsAre(1, 2, 3));
}

TEST_P(NcclCommunicatorTest, RefusesWhatIsNoSumAndOtherGpus) {
  const DeviceArray<BFloat16> numbers(std::vector<BFloat16>(8));
  EXPECT_EQ(code_of([&] { comm_->all_reduce_sum(numbers.view()).wait(); }), ErrorCode::kUsage);

  const DeviceArray<float> array(std::vector<float>(8));
  BufferView elsewhere = array.view();
  elsewhere.device.index = 7;
  const std::vector<ElementRange> owned = {{0, 8}};
  const std::vector<ElementRange> too_short = {{0, 7}};
  EXPECT_EQ(code_of([&] { comm_->all_reduce_sum(elsewhere).wait(); }), ErrorCode::kUsage);
  EXPECT_EQ(code_of([&] { comm_->reduce_scatter_sum(elsewhere, owned).wait(); }), ErrorCode::kUsage);
  EXPECT_EQ(code_of([&] { comm_->all_gather_ranges(elsewhere, owned).wait(); }), ErrorCode::kUsage);
  EXPECT_EQ(code_of([&] { comm_->reduce_scatter_sum(array.view(), too_short).wait(); }), ErrorCode::kUsage);
  comm_->all_reduce_sum(array.view()).wait();  // nothing was broken
}

TEST_P(NcclCommunicatorTest, RefusesCallsAfterItsEnd) {
  const DeviceArray<float> array(std::vector<float>(8));
  const std::unique_ptr<Communicator> other = make();
  other->all_reduce_sum(array.view()).wait();
  other->close();
  EXPECT_EQ(code_of([&] { other->all_reduce_sum(array.view()).wait(); }), ErrorCode::kUsage);
}

TEST_P(NcclCommunicatorTest, FailsWhatIsNotWaitedForBeforeItIsDestroyed) {
  const DeviceArray<float> array(std::vector<float>(8));
  std::unique_ptr<Communicator> other = make();
  Work work = other->all_reduce_sum(array.view());
  Work dropped = other->all_reduce_sum(array.view());
  other.reset();
  EXPECT_TRUE(work.is_done());
  EXPECT_EQ(code_of([&] { work.wait(); }), ErrorCode::kPeerLost);
  comm_->all_reduce_sum(array.view()).wait();  // another communicator is not concerned
}

INSTANTIATE_TEST_SUITE_P(Elastic, NcclCommunicatorTest, testing::Bool(),
                         [](const auto& tested) { return tested.param ? "elastic" : "fixed"; });

}  // namespace
}  // namespace lockstep
