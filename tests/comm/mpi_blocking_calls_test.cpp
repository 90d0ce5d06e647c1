#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "base/error.h"
#include "comm/communicator.h"
#include "comm/rank_environment.h"

namespace lockstep {
namespace {

class BlockingCallsTest : public testing::Test {
 protected:
  void SetUp() override { comm_ = make_communicator({.backend = "mpi", .timeout_ms = 30'000}); }
  void TearDown() override {
    if (!HasFailure()) {
      comm_->close();
    }
  }

  std::unique_ptr<Communicator> comm_;
};

TEST_F(BlockingCallsTest, KnowWhoTheyAre) {
  const RankEnvironment environment = detect_rank_environment(process_environment());
  EXPECT_EQ(comm_->rank(), environment.rank);
  EXPECT_EQ(comm_->world_size(), environment.world_size);
  EXPECT_EQ(comm_->node_size(), environment.world_size);
  EXPECT_THAT(comm_->description(), testing::StartsWith("mpi: " + std::to_string(environment.world_size) + " rank"));
}

TEST_F(BlockingCallsTest, BroadcastWhatTheRootHas) {
  for (const std::size_t count : {0U, 1U, 1000U, 1'500'000U}) {
    for (int root = 0; root < comm_->world_size(); ++root) {
      std::vector<int> expected(count);
      std::iota(expected.begin(), expected.end(), root);
      std::vector<int> values = comm_->rank() == root ? expected : std::vector<int>(count, -1);
      comm_->broadcast(std::as_writable_bytes(std::span(values)), root);
      EXPECT_EQ(values, expected) << count << " numbers from rank " << root;
    }
  }
}

TEST_F(BlockingCallsTest, GatherInTheOrderOfTheRanks) {
  const auto ranks = static_cast<std::size_t>(comm_->world_size());
  for (const std::size_t count : {0U, 1U, 1000U, 1'500'000U}) {
    const std::vector<int> mine(count, comm_->rank() + 10);
    std::vector<int> all(count * ranks, -1);
    comm_->all_gather(std::as_bytes(std::span(mine)), std::as_writable_bytes(std::span(all)));
    for (std::size_t i = 0; i < all.size(); ++i) {
      ASSERT_EQ(all[i], static_cast<int>(i / count) + 10) << "at " << i << " of " << all.size();
    }
  }
}

TEST_F(BlockingCallsTest, MoveTextsOfAnyLength) {
  const std::string mine(static_cast<std::size_t>(comm_->rank()) * 3, 'x');
  const std::vector<std::string> all = comm_->all_gather_text(mine);
  ASSERT_EQ(static_cast<int>(all.size()), comm_->world_size());
  for (std::size_t r = 0; r < all.size(); ++r) {
    EXPECT_EQ(all[r], std::string(r * 3, 'x'));
  }
  const int last = comm_->world_size() - 1;
  EXPECT_EQ(comm_->broadcast_text(comm_->rank() == last ? std::string("a\0b", 3) : "ignored", last),
            std::string("a\0b", 3));
  EXPECT_EQ(comm_->broadcast_text("", 0), "");
}

TEST_F(BlockingCallsTest, HoldEveryRankAtABarrier) {
  using Clock = std::chrono::steady_clock;  // one clock for all processes of a machine
  if (comm_->rank() == 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(150));
  }
  const std::int64_t entered = Clock::now().time_since_epoch().count();
  comm_->barrier();
  const std::int64_t left = Clock::now().time_since_epoch().count();
  std::vector<std::int64_t> all_entered(static_cast<std::size_t>(comm_->world_size()));
  comm_->all_gather(std::as_bytes(std::span(&entered, 1)), std::as_writable_bytes(std::span(all_entered)));
  for (const std::int64_t other : all_entered) {
    EXPECT_LE(other, left);
  }
}

TEST_F(BlockingCallsTest, RefuseBadArgumentsOnEveryRank) {
  std::vector<int> values(3);
  EXPECT_THROW(comm_->broadcast(std::as_writable_bytes(std::span(values)), comm_->world_size()), Error);
  EXPECT_THROW(comm_->broadcast(std::as_writable_bytes(std::span(values)), -1), Error);
  std::vector<int> room(static_cast<std::size_t>(3 * comm_->world_size() + 1));
  EXPECT_THROW(comm_->all_gather(std::as_bytes(std::span(values)), std::as_writable_bytes(std::span(room))), Error);
  comm_->barrier();
}

TEST(MakeCommunicatorTest, ChoosesByTheNumberOfRanks) {
  const RankEnvironment environment = detect_rank_environment(process_environment());
  const std::unique_ptr<Communicator> comm = make_communicator({});
  EXPECT_EQ(comm->world_size(), environment.world_size);
  EXPECT_THAT(comm->description(), testing::StartsWith(environment.world_size == 1 ? "self" : "mpi"));
  comm->close();
}

TEST(MakeCommunicatorTest, RefusesOneWorldForEachOfManyRanks) {
  if (detect_rank_environment(process_environment()).world_size > 1) {
    EXPECT_THROW(static_cast<void>(make_communicator({.backend = "self"})), Error);
  }
}

}  // namespace
}  // namespace lockstep
