#include "comm/mpi/topology.h"

#include <bit>
#include <set>

#include "base/error.h"

namespace lockstep::mpi {

Topology make_topology(std::span<const int> node_of_rank, int rank) {
  const auto world = static_cast<int>(node_of_rank.size());
  const int my_node = node_of_rank[static_cast<std::size_t>(rank)];
  Topology topology;
  topology.nodes = static_cast<int>(std::set<int>(node_of_rank.begin(), node_of_rank.end()).size());
  for (int r = 0; r < world; ++r) {
    if (node_of_rank[static_cast<std::size_t>(r)] == my_node) {
      topology.node_ranks.push_back(r);
    }
  }

  const int size = world / topology.nodes;
  if (topology.nodes > 1) {
    topology.nodes_are_subtrees = world % topology.nodes == 0 && std::has_single_bit(static_cast<unsigned>(size));
    for (int r = 0; r < world && topology.nodes_are_subtrees; ++r) {
      topology.nodes_are_subtrees =
          node_of_rank[static_cast<std::size_t>(r)] == node_of_rank[static_cast<std::size_t>(r / size * size)];
    }
  }
  if (topology.nodes_are_subtrees) {
    for (int r = rank % size; r < world; r += size) {
      topology.counterpart_ranks.push_back(r);
    }
  }
  return topology;
}

std::vector<int> override_nodes(std::span<const int> node_of_rank, int ranks_per_node) {
  std::vector<int> groups;
  for (std::size_t r = 0; r < node_of_rank.size(); ++r) {
    const std::size_t first = r - r % static_cast<std::size_t>(ranks_per_node);
    require(node_of_rank[r] == node_of_rank[first],
            "comm.ranks_per_node: {} puts ranks {} and {} together, which do not share a node", ranks_per_node, first,
            r);
    groups.push_back(static_cast<int>(first));
  }
  return groups;
}

}  // namespace lockstep::mpi
