// Which workers train together, and as which ranks.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "comm/server/protocol.h"

namespace lockstep::server {

// How many of `here` workers may train: all `workers` of the job, or, where fewer may, the largest power of two that is
// there and not below `min_workers`; 0: none yet.
[[nodiscard]] inline std::size_t world_of(std::size_t here, std::size_t workers, std::size_t min_workers) {
  if (here >= workers) {
    return workers;
  }
  const std::size_t world = std::bit_floor(here);
  return world >= min_workers ? world : 0;
}

// Of workers in the order in which they came, who gets rank 0, 1, ... below `world`, which is at most their number:
// those who ask for a rank come first and get it where they can, the others what is left.
[[nodiscard]] inline std::vector<std::size_t> seats(std::span<const Hello> workers, std::size_t world) {
  std::vector<std::size_t> order(workers.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return workers[a].rank < workers[b].rank; });  // kNoRank is last
  order.resize(world);
  const std::size_t nobody = workers.size();
  std::vector<std::size_t> seated(world, nobody);
  std::vector<std::size_t> others;
  for (const std::size_t worker : order) {
    const std::uint32_t rank = workers[worker].rank;
    if (rank < world && seated[rank] == nobody) {
      seated[rank] = worker;
    } else {
      others.push_back(worker);
    }
  }
  auto next = others.begin();
  for (std::size_t& seat : seated) {
    if (seat == nobody) {
      seat = *next++;
    }
  }
  return seated;
}

}  // namespace lockstep::server
