#include "trainer/grad_reducer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <tuple>
#include <utility>

#include "base/error.h"
#include "comm/self_communicator.h"
#include "tests/trainer/reducer_harness.h"

namespace lockstep {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::Pair;

std::vector<std::pair<std::size_t, std::size_t>> parameters_of(const std::vector<Bucket>& buckets) {
  std::vector<std::pair<std::size_t, std::size_t>> result;
  for (const Bucket& bucket : buckets) {
    result.emplace_back(bucket.first_parameter, bucket.last_parameter);
  }
  return result;
}

TEST(Buckets, CloseWithTheParameterThatFillsThem) {
  const ParameterLayout layout = reducer_layout();  // offsets 0, 16, 64, 80, 96; total 496
  EXPECT_THAT(parameters_of(make_buckets(layout, 1)),
              ElementsAre(Pair(0, 0), Pair(1, 1), Pair(2, 2), Pair(3, 3), Pair(4, 4)));
  EXPECT_THAT(parameters_of(make_buckets(layout, 64 * 4)), ElementsAre(Pair(0, 1), Pair(2, 4)));
  EXPECT_THAT(parameters_of(make_buckets(layout, 64 * 4 + 1)), ElementsAre(Pair(0, 2), Pair(3, 4)));
  EXPECT_THAT(parameters_of(make_buckets(layout, 1 << 20)), ElementsAre(Pair(0, 4)));
  EXPECT_THAT(make_buckets(ParameterLayout(), 1), IsEmpty());
}

TEST(Buckets, CoverTheLayoutInItsOrder) {
  const ParameterLayout layout = reducer_layout();
  for (const std::uint64_t bytes : {1, 200, 300, 1000, 100'000}) {
    std::uint64_t next = 0;
    for (const Bucket& bucket : make_buckets(layout, bytes)) {
      EXPECT_EQ(bucket.range.begin, next);
      next = bucket.range.end;
    }
    EXPECT_EQ(next, layout.total());
  }
}

// Micro-batches on this rank, bucket size.
class GradReducerTest : public testing::TestWithParam<std::tuple<int, std::uint64_t>> {
 protected:
  GradReducerTest() {
    const auto& [micro_batches, bytes] = GetParam();
    reducer_ = std::make_unique<GradReducer>(
        layout_, self_, *backend_,
        GradReducer::Options{
            .local_micro_batches = micro_batches, .largest_micro_batches = micro_batches, .bucket_bytes = bytes});
  }
  ParameterLayout layout_ = reducer_layout();
  SelfCommunicator self_;
  std::unique_ptr<Backend> backend_ = make_cpu_backend(2);
  std::unique_ptr<GradReducer> reducer_;
};

TEST_P(GradReducerTest, AddsMicroBatchesAlongTheTreeStepAfterStep) {
  const int count = std::get<0>(GetParam());
  for (int step = 0; step < 3; ++step) {
    EXPECT_TRUE(
        test::same_bits(reduce(*reducer_, layout_, step * count, count), tree_sum_of(layout_, step * count, count)))
        << "step " << step;
  }
}

TEST_P(GradReducerTest, DoesNotDependOnTheOrderInWhichGradientsBecomeReady) {
  const int count = std::get<0>(GetParam());
  for (const std::vector<int>& order : {std::vector{4, 3, 2, 1, 0}, std::vector{2, 0, 4, 1, 3}}) {
    for (int m = 0; m < count; ++m) {
      run_micro_batch(*reducer_, layout_, micro_batch_gradient(layout_, m), order);
    }
    reducer_->finish();
    EXPECT_TRUE(test::same_bits(reducer_->gradient(), tree_sum_of(layout_, 0, count)));
  }
}

INSTANTIATE_TEST_SUITE_P(MicroBatchesAndBuckets, GradReducerTest,
                         testing::Combine(testing::Values(1, 2, 3, 4, 5, 6, 7, 8),
                                          testing::Values(std::uint64_t{1}, std::uint64_t{256},
                                                          std::uint64_t{1} << 20)));

// In floats of about 1e8 a one is lost: 1e8 + 1 = 1e8.
TEST(GradReducer, AddsNeighboursBeforeDistantMicroBatches) {
  const ParameterLayout layout({{"x", {1}, false, {}}});
  SelfCommunicator self;
  const auto backend = make_cpu_backend(1);
  GradReducer reducer(layout, self, *backend, {.local_micro_batches = 4, .largest_micro_batches = 4});
  const auto sum = [&](const std::vector<float>& gradients) {
    for (const float gradient : gradients) {
      run_micro_batch(reducer, layout, std::vector{gradient}, {0});
    }
    reducer.finish();
    return reducer.gradient()[0];
  };
  EXPECT_EQ(sum({1e8F, 1, -1e8F, 1}), 0.0F);  // (1e8 + 1) + (-1e8 + 1); one after another it would be 1
  EXPECT_EQ(sum({1e8F, -1e8F, 1, 1}), 2.0F);  // (1e8 - 1e8) + (1 + 1)
  EXPECT_EQ(sum({1, 1e8F, 1, -1e8F}), 0.0F);  // (1 + 1e8) + (1 - 1e8)
}

TEST(GradReducer, RefusesARankWithoutMicroBatches) {
  const ParameterLayout layout = reducer_layout();
  SelfCommunicator self;
  const auto backend = make_cpu_backend(1);
  EXPECT_THROW(GradReducer(layout, self, *backend, {.local_micro_batches = 0}), Error);
}

// Notes the count of every sum it is asked for.
class CountingCommunicator final : public Communicator {
 public:
  [[nodiscard]] int rank() const override { return 0; }
  [[nodiscard]] int world_size() const override { return 1; }
  [[nodiscard]] int node_size() const override { return 1; }
  [[nodiscard]] std::string description() const override { return "counting"; }
  [[nodiscard]] Buffer allocate(std::size_t size_bytes) override { return Buffer::allocate(size_bytes); }
  [[nodiscard]] Work all_reduce_sum(BufferView data) override {
    counts.push_back(data.count);
    return {};
  }
  [[nodiscard]] Work reduce_scatter_sum(BufferView data, std::span<const ElementRange> owned) override {
    ranges.emplace_back(owned.begin(), owned.end());
    return all_reduce_sum(data);
  }
  [[nodiscard]] Work all_gather_ranges(BufferView /*data*/, std::span<const ElementRange> /*owned*/) override {
    return {};
  }
  void broadcast(std::span<std::byte> /*bytes*/, int /*root*/) override {}
  void all_gather(std::span<const std::byte> /*mine*/, std::span<std::byte> /*all*/) override {}
  void barrier() override {}
  [[nodiscard]] double time_library_sum(BufferView, int) override { return 0; }

  std::vector<std::size_t> counts;
  std::vector<std::vector<ElementRange>> ranges;
};

TEST(GradReducer, CutsEachBucketWhereTheShardsAreCut) {
  const ParameterLayout layout = reducer_layout();  // buckets [0, 64) and [64, 496)
  CountingCommunicator communicator;
  const auto backend = make_cpu_backend(1);
  GradReducer reducer(layout, communicator, *backend,
                      {.bucket_bytes = 256, .owned = {{0, 48}, {48, 80}, {80, 80}, {80, 496}}});
  run_micro_batch(reducer, layout, micro_batch_gradient(layout, 0), layout_order(layout));
  reducer.finish();
  const std::vector<ElementRange> first = {{0, 48}, {48, 64}, {64, 64}, {64, 64}};
  const std::vector<ElementRange> second = {{0, 0}, {0, 16}, {16, 16}, {16, 432}};
  EXPECT_THAT(communicator.ranges, ElementsAre(first, second));
}

TEST(GradReducer, StartsABucketAsSoonAsItsLastGradientOfTheStepIsFinal) {
  const ParameterLayout layout = reducer_layout();
  CountingCommunicator communicator;
  const auto backend = make_cpu_backend(1);
  GradReducer reducer(layout, communicator, *backend,
                      {.local_micro_batches = 2, .largest_micro_batches = 2, .bucket_bytes = 256});
  const std::vector<float> gradient = micro_batch_gradient(layout, 0);
  run_micro_batch(reducer, layout, gradient, layout_order(layout));
  EXPECT_THAT(communicator.counts, IsEmpty());

  reducer.gradient_ready(1);
  EXPECT_THAT(communicator.counts, IsEmpty());
  reducer.gradient_ready(0);
  EXPECT_THAT(communicator.counts, ElementsAre(64));
  reducer.gradient_ready(2);
  reducer.gradient_ready(3);
  EXPECT_THAT(communicator.counts, ElementsAre(64));
  reducer.gradient_ready(4);
  EXPECT_THAT(communicator.counts, ElementsAre(64, 432));
  reducer.end_micro_batch();
  reducer.finish();
  EXPECT_GE(reducer.comm_ms(), reducer.exposed_ms());
}

}  // namespace
}  // namespace lockstep
