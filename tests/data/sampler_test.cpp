#include "data/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <set>
#include <vector>

#include "tests/support/error_matcher.h"

namespace lockstep {
namespace {

TEST(SamplerTest, RefusesADatasetWithoutSamples) {
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [] { static_cast<void>(Sampler({.samples = 0})); }),
            "data: samples 0, micro_batches 1 and micro_batch_size 1 must be at least 1");
}

TEST(SamplerTest, VisitsEverySampleOnceInEachEpoch) {
  // 21 samples, 8 rows a step: epochs end inside steps and inside micro-batches.
  const Sampler sampler({.samples = 21, .micro_batches = 4, .micro_batch_size = 2, .seed = 5});
  ASSERT_EQ(sampler.samples_per_epoch(), 21U);
  std::vector<std::uint64_t> order;
  for (std::uint64_t step = 0; step < 21; ++step) {
    for (std::int64_t m = 0; m < 4; ++m) {
      for (std::int64_t b = 0; b < 2; ++b) {
        order.push_back(sampler.sample(step, m, b));
      }
    }
  }
  std::set<std::vector<std::uint64_t>> orders;
  for (std::size_t epoch = 0; epoch < 8; ++epoch) {
    const std::vector<std::uint64_t> visited(order.begin() + static_cast<std::ptrdiff_t>(epoch * 21),
                                             order.begin() + static_cast<std::ptrdiff_t>((epoch + 1) * 21));
    EXPECT_EQ(std::set<std::uint64_t>(visited.begin(), visited.end()).size(), 21U) << "epoch " << epoch;
    EXPECT_LT(*std::max_element(visited.begin(), visited.end()), 21U);
    orders.insert(visited);
  }
  EXPECT_EQ(orders.size(), 8U) << "two epochs have the same order";
  EXPECT_EQ(sampler.epoch(0), 0U);
  EXPECT_EQ(sampler.epoch(2), 0U);
  EXPECT_EQ(sampler.epoch(3), 1U);
}

TEST(SamplerTest, DependsOnTheSeed) {
  const SamplerOptions options = {.samples = 1000, .micro_batches = 8, .micro_batch_size = 4};
  SamplerOptions other = options;
  other.seed = 1;
  int equal = 0;
  for (std::int64_t m = 0; m < 8; ++m) {
    for (std::int64_t b = 0; b < 4; ++b) {
      equal += Sampler(options).sample(0, m, b) == Sampler(other).sample(0, m, b) ? 1 : 0;
    }
  }
  EXPECT_LT(equal, 3);
}

TEST(SamplerTest, GivesEachMicroBatchToOneRankInOrder) {
  for (const int world : {1, 2, 3, 4, 8}) {
    std::int64_t next = 0;
    for (int rank = 0; rank < world; ++rank) {
      const MicroBatchRange range = micro_batches_of_rank(8, rank, world);
      EXPECT_EQ(range.begin, next);
      next = range.end;
    }
    EXPECT_EQ(next, 8);
  }
  EXPECT_EQ(micro_batches_of_rank(8, 1, 4).begin, 2);
  EXPECT_EQ(micro_batches_of_rank(8, 1, 4).end, 4);
}

}  // namespace
}  // namespace lockstep
