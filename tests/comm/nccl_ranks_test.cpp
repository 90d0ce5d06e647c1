// Sums and gathers between GPUs, a GPU for each rank: skipped where there are fewer GPUs than ranks.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "comm/communicator.h"
#include "comm/nccl/communicator.h"
#include "tests/comm/nccl_device_array.h"
#include "tests/comm/tree_reference.h"

namespace lockstep {
namespace {

// The last goes in two rounds where elements are doubles.
constexpr std::size_t kCounts[] = {0, 1, 3, 8192, 8193, 100'003, 1 << 20, 9'000'003};

// The parameter is CommOptions::elastic.
class NcclRanksTest : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    CommOptions options{.backend = "mpi", .timeout_ms = 60'000, .elastic = GetParam()};
    host_ = make_communicator(options);
    const std::size_t gpus = cuda::list_devices().devices.size();
    if (gpus < static_cast<std::size_t>(host_->world_size())) {
      host_->close();
      GTEST_SKIP() << gpus << " GPUs for " << host_->world_size() << " ranks";
    }
    gpu_ = host_->rank();
    cuda::use_device(gpu_);
    comm_ = make_nccl_communicator(options, *host_);
  }
  void TearDown() override {
    if (comm_ && !HasFailure()) {
      comm_->close();
      comm_.reset();
      host_->close();
    }
  }

  [[nodiscard]] std::size_t rank() const { return static_cast<std::size_t>(comm_->rank()); }
  [[nodiscard]] std::size_t world_size() const { return static_cast<std::size_t>(comm_->world_size()); }

  template <typename T>
  [[nodiscard]] BufferView on_my_gpu(const test::DeviceArray<T>& array) const {
    BufferView view = array.view();
    view.device.index = static_cast<std::uint8_t>(gpu_);
    return view;
  }

  // Of the given rank. Where NCCL adds in an order of its own: whole numbers, whose sum is exact in any.
  template <typename T>
  [[nodiscard]] static std::vector<T> values_of(std::size_t rank, std::size_t count) {
    if (GetParam()) {
      return test::leaf_values<T>(static_cast<int>(rank), count);
    }
    std::vector<T> values(count);
    for (std::size_t i = 0; i < count; ++i) {
      values[i] = static_cast<T>(i % 1000 + rank);
    }
    return values;
  }
  // Takes longer than everything else here, so it is made once for each size.
  template <typename T>
  [[nodiscard]] const std::vector<T>& expected(std::size_t count) const {
    static std::map<std::pair<bool, std::size_t>, std::vector<T>> known;
    std::vector<T>& sum = known[{GetParam(), count}];
    if (sum.empty()) {
      std::vector<std::vector<T>> leaves;
      for (std::size_t r = 0; r < world_size(); ++r) {
        leaves.push_back(values_of<T>(r, count));
      }
      sum = test::reference_sum(leaves);
    }
    return sum;
  }

  // Equal shares, or shares of which every third is empty.
  [[nodiscard]] std::vector<ElementRange> shares(std::size_t count, bool equal) const {
    std::vector<ElementRange> owned;
    std::uint64_t end = 0;
    for (std::size_t r = 0; r < world_size(); ++r) {
      const std::uint64_t begin = end;
      const std::uint64_t size = equal ? count / world_size() : (r % 3 == 1 ? 0 : count / (world_size() + 1) + r);
      end = !equal && r + 1 == world_size() ? count : std::min<std::uint64_t>(count, begin + size);
      owned.push_back({begin, end});
    }
    return owned;
  }

  template <typename T>
  void expect_all_reduce() {
    for (const std::size_t count : kCounts) {
      for (const std::size_t offset : {0U, 1U}) {
        const test::DeviceArray<T> array(values_of<T>(rank(), count), offset);
        comm_->all_reduce_sum(on_my_gpu(array)).wait();
        EXPECT_TRUE(test::same_bits(array.get(), expected<T>(count))) << count << " elements, " << offset << " behind";
      }
    }
  }

  template <typename T>
  void expect_scatter_and_gather() {
    for (const std::size_t count : kCounts) {
      for (const bool equal : {true, false}) {
        const std::vector<ElementRange> owned = shares(count, equal);
        const std::size_t covered = owned.back().end;
        const std::vector<T>& sum = expected<T>(count);
        const std::vector<T> mine = values_of<T>(rank(), count);
        const test::DeviceArray<T> array(
            std::vector<T>(mine.begin(), mine.begin() + static_cast<std::ptrdiff_t>(covered)));
        comm_->reduce_scatter_sum(on_my_gpu(array), owned).wait();
        const std::vector<T> scattered = array.get();
        const ElementRange own = owned[rank()];
        EXPECT_TRUE(test::same_bits(std::span(scattered).subspan(own.begin, own.size()),
                                    std::span(sum).subspan(own.begin, own.size())))
            << count << " elements, " << (equal ? "equal shares" : "unequal shares");
        comm_->all_gather_ranges(on_my_gpu(array), owned).wait();
        EXPECT_TRUE(test::same_bits(array.get(), std::span(sum).first(covered))) << count << " elements";
      }
    }
  }

  int gpu_ = 0;
  std::unique_ptr<Communicator> host_;
  std::unique_ptr<Communicator> comm_;
};

TEST_P(NcclRanksTest, LeavesTheSumOnEveryRank) {
  expect_all_reduce<float>();
  expect_all_reduce<double>();
}

TEST_P(NcclRanksTest, LeavesEveryOwnerItsSumAndGathersThem) {
  expect_scatter_and_gather<float>();
  expect_scatter_and_gather<double>();
}

TEST_P(NcclRanksTest, GathersWhatDoesNotTouch) {
  std::vector<std::uint8_t> values(10 * world_size() + 5, static_cast<std::uint8_t>(rank()));
  const test::DeviceArray<std::uint8_t> array(values);
  std::vector<ElementRange> owned;
  for (std::size_t r = 0; r < world_size(); ++r) {
    owned.push_back({10 * r + 3, 10 * r + 8 + r % 3});
    std::fill(values.begin() + static_cast<std::ptrdiff_t>(owned[r].begin),
              values.begin() + static_cast<std::ptrdiff_t>(owned[r].end), static_cast<std::uint8_t>(r));
  }
  comm_->all_gather_ranges(on_my_gpu(array), owned).wait();
  EXPECT_EQ(array.get(), values);
}

INSTANTIATE_TEST_SUITE_P(Elastic, NcclRanksTest, testing::Bool(),
                         [](const auto& tested) { return tested.param ? "elastic" : "fixed"; });

}  // namespace
}  // namespace lockstep
