#include "comm/self_communicator.h"

#include <algorithm>

#include "comm/arguments.h"

namespace lockstep {

Buffer SelfCommunicator::allocate(std::size_t size_bytes) { return Buffer::allocate(size_bytes); }

Work SelfCommunicator::all_reduce_sum(BufferView data) {
  comm_detail::check_all_reduce(data);
  return {};
}

Work SelfCommunicator::reduce_scatter_sum(BufferView data, std::span<const ElementRange> owned) {
  comm_detail::check_reduce_scatter(data, owned, 1);
  return {};
}

Work SelfCommunicator::all_gather_ranges(BufferView data, std::span<const ElementRange> owned) {
  comm_detail::check_all_gather_ranges(data, owned, 1);
  return {};
}

void SelfCommunicator::broadcast(std::span<std::byte> /*bytes*/, int root) { comm_detail::check_broadcast(root, 1); }

void SelfCommunicator::all_gather(std::span<const std::byte> mine, std::span<std::byte> all) {
  comm_detail::check_all_gather(mine, all, 1);
  std::copy(mine.begin(), mine.end(), all.begin());
}

}  // namespace lockstep
