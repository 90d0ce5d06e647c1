// Which ranks share a node, and by which path their sums go. Pure.
#pragma once

#include <span>
#include <vector>

namespace lockstep::mpi {

// A sum goes through a node's shared memory first and then between the nodes when that keeps the tree: when the nodes
// are complete subtrees, that is 2^k consecutive ranks each (or when there is one node). Otherwise all ranks exchange
// directly.
struct Topology {
  int nodes = 1;
  bool nodes_are_subtrees = true;
  std::vector<int> node_ranks;         // of this rank's node, ascending, itself included
  std::vector<int> counterpart_ranks;  // those at this rank's place in their nodes, ascending; empty unless subtrees
};

// node_of_rank[r] identifies rank r's node; equal means shared memory.
[[nodiscard]] Topology make_topology(std::span<const int> node_of_rank, int rank);

// Cuts the nodes into groups of `ranks_per_node` consecutive ranks (the last may be smaller): groups are then taken for
// nodes. Throws Error(kUsage) when a group would span two nodes.
[[nodiscard]] std::vector<int> override_nodes(std::span<const int> node_of_rank, int ranks_per_node);

}  // namespace lockstep::mpi
