#include "comm/self_communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"

namespace lockstep {
namespace {

template <typename T>
std::span<std::byte> writable(std::vector<T>& values) {
  return std::as_writable_bytes(std::span(values));
}

TEST(SelfCommunicatorTest, IsRank0Of1) {
  const SelfCommunicator comm;
  EXPECT_EQ(comm.rank(), 0);
  EXPECT_EQ(comm.world_size(), 1);
  EXPECT_EQ(comm.node_size(), 1);
}

TEST(SelfCommunicatorTest, LeavesASumAsItIs) {
  SelfCommunicator comm;
  std::vector<float> values = {1, -0.0F, 3};
  Work work = comm.all_reduce_sum(view_of(std::span(values)));
  EXPECT_TRUE(work.is_done());
  work.wait();
  EXPECT_THAT(values, testing::ElementsAre(1, 0, 3));
}

TEST(SelfCommunicatorTest, AllocatesZeroedMemory) {
  SelfCommunicator comm;
  const Buffer buffer = comm.allocate(100);
  EXPECT_THAT(buffer.as<std::uint8_t>(100), testing::Each(0));
}

TEST(SelfCommunicatorTest, GathersItsOwn) {
  SelfCommunicator comm;
  const std::vector<int> mine = {1, 2};
  std::vector<int> all(2);
  comm.all_gather(std::as_bytes(std::span(mine)), writable(all));
  EXPECT_THAT(all, testing::ElementsAre(1, 2));
  EXPECT_THAT(comm.all_gather_text("abc"), testing::ElementsAre("abc"));
  EXPECT_THAT(comm.all_gather_text(""), testing::ElementsAre(""));
  EXPECT_EQ(comm.broadcast_text("abc", 0), "abc");
}

TEST(SelfCommunicatorTest, RefusesWhatIsNoSum) {
  SelfCommunicator comm;
  std::vector<BFloat16> values(3);
  EXPECT_THROW(static_cast<void>(comm.all_reduce_sum(view_of(std::span(values)))), Error);
}

TEST(SelfCommunicatorTest, RefusesARootThatDoesNotExist) {
  SelfCommunicator comm;
  std::vector<int> values(3);
  EXPECT_THROW(comm.broadcast(writable(values), 1), Error);
  EXPECT_THROW(comm.broadcast(writable(values), -1), Error);
}

TEST(SelfCommunicatorTest, RefusesToGatherIntoTheWrongRoom) {
  SelfCommunicator comm;
  const std::vector<int> mine(3);
  std::vector<int> all(2);
  EXPECT_THROW(comm.all_gather(std::as_bytes(std::span(mine)), writable(all)), Error);
}

TEST(MakeCommunicatorTest, RefusesUnknownBackendsAndBadNumbers) {
  EXPECT_THROW(static_cast<void>(make_communicator({.backend = "gloo"})), Error);
  EXPECT_THROW(static_cast<void>(make_communicator({.ranks_per_node = -1})), Error);
  EXPECT_THROW(static_cast<void>(make_communicator({.timeout_ms = 0})), Error);
}

}  // namespace
}  // namespace lockstep
