#include "comm/nccl/schedule.h"

#include <algorithm>
#include <cassert>

namespace lockstep::nccl {

Exchange make_exchange(std::size_t rank, std::size_t world_size, std::size_t element_bytes) {
  assert(rank < world_size && world_size <= kMaxRanks);
  constexpr std::size_t kSlotAlignment = 256;
  const std::size_t slot_bytes = kScratchBytes / world_size / kSlotAlignment * kSlotAlignment;
  // A slot begins as far behind a multiple of kAlignmentBytes as the piece does: the kernel's accesses are wide then.
  return {rank, world_size, slot_bytes, (slot_bytes - kAlignmentBytes) / element_bytes};
}

ElementRange piece_of(const ElementRange& owned, std::uint64_t round, std::uint64_t piece_elements) {
  const std::uint64_t begin = std::min(owned.end, owned.begin + round * piece_elements);
  return {begin, std::min(owned.end, begin + piece_elements)};
}

std::uint64_t round_count(std::span<const ElementRange> owned, std::uint64_t piece_elements) {
  std::uint64_t largest = 0;
  for (const ElementRange& range : owned) {
    largest = std::max(largest, range.size());
  }
  return (largest + piece_elements - 1) / piece_elements;
}

std::optional<std::uint64_t> equal_size(std::span<const ElementRange> owned) {
  for (std::size_t r = 1; r < owned.size(); ++r) {
    if (owned[r].begin != owned[r - 1].end || owned[r].size() != owned[0].size()) {
      return std::nullopt;
    }
  }
  return owned[0].size();
}

Cut cut_all_reduce(std::uint64_t count, std::size_t world_size, std::size_t element_bytes) {
  if (count * element_bytes <= kWholeBytes) {
    return {0, {0, count}};
  }
  const std::uint64_t step = kAlignmentBytes / element_bytes;
  const std::uint64_t part_elements = count / world_size / step * step;
  return {part_elements, {part_elements * world_size, count}};
}

}  // namespace lockstep::nccl
