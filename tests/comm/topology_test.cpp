#include "comm/mpi/topology.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"

namespace lockstep::mpi {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

TEST(TopologyTest, TakesOneNodeOfAnySizeForASubtree) {
  for (const int ranks : {1, 2, 3, 7}) {
    const Topology topology = make_topology(std::vector<int>(static_cast<std::size_t>(ranks), 0), 0);
    EXPECT_EQ(topology.nodes, 1);
    EXPECT_TRUE(topology.nodes_are_subtrees);
    EXPECT_EQ(static_cast<int>(topology.node_ranks.size()), ranks);
    EXPECT_THAT(topology.counterpart_ranks, ElementsAre(0));
  }
}

TEST(TopologyTest, FindsTheCounterpartsOnOtherNodes) {
  const Topology topology = make_topology(std::vector<int>{0, 0, 2, 2, 4, 4, 6, 6}, 3);
  EXPECT_EQ(topology.nodes, 4);
  EXPECT_TRUE(topology.nodes_are_subtrees);
  EXPECT_THAT(topology.node_ranks, ElementsAre(2, 3));
  EXPECT_THAT(topology.counterpart_ranks, ElementsAre(1, 3, 5, 7));
}

TEST(TopologyTest, KeepsTheTreeOfAnyNumberOfNodes) {
  EXPECT_TRUE(make_topology(std::vector<int>{0, 0, 2, 2, 4, 4}, 0).nodes_are_subtrees);
  EXPECT_TRUE(make_topology(std::vector<int>{0, 1, 2}, 0).nodes_are_subtrees);
}

TEST(TopologyTest, GivesUpOnNodesThatAreNoSubtrees) {
  for (const std::vector<int>& nodes : {std::vector<int>{0, 0, 0, 3, 3, 3}, std::vector<int>{0, 0, 2},
                                        std::vector<int>{0, 1, 0, 1}, std::vector<int>{0, 1, 1, 0}}) {
    const Topology topology = make_topology(nodes, 1);
    EXPECT_FALSE(topology.nodes_are_subtrees) << testing::PrintToString(nodes);
    EXPECT_THAT(topology.counterpart_ranks, IsEmpty());
  }
}

TEST(OverrideNodesTest, GroupsConsecutiveRanks) {
  EXPECT_THAT(override_nodes(std::vector<int>(5, 0), 2), ElementsAre(0, 0, 2, 2, 4));
  EXPECT_THAT(override_nodes(std::vector<int>(3, 0), 1), ElementsAre(0, 1, 2));
  EXPECT_THAT(override_nodes(std::vector<int>(3, 0), 8), ElementsAre(0, 0, 0));
  EXPECT_THAT(override_nodes(std::vector<int>{0, 0, 2, 2}, 1), ElementsAre(0, 1, 2, 3));
}

TEST(OverrideNodesTest, RefusesToJoinNodes) {
  try {
    static_cast<void>(override_nodes(std::vector<int>{0, 0, 2, 2}, 4));
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUsage);
    EXPECT_STREQ(error.what(), "comm.ranks_per_node: 4 puts ranks 0 and 2 together, which do not share a node");
  }
}

}  // namespace
}  // namespace lockstep::mpi
