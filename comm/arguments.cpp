#include "comm/arguments.h"

#include "base/error.h"

namespace lockstep::comm_detail {

void check_all_reduce(const BufferView& data) {
  require(data.dtype == DType::kF32 || data.dtype == DType::kF64,
          "all_reduce_sum: elements are {}, expected f32 or f64", name_of(data.dtype));
  require(data.device.kind == DeviceKind::kCpu, "all_reduce_sum: the buffer lies on GPU {}, expected memory of the CPU",
          data.device.index);
}

void check_broadcast(int root, int world_size) {
  require(root >= 0 && root < world_size, "broadcast: the root is rank {}, expected 0 to {}", root, world_size - 1);
}

void check_all_gather(std::span<const std::byte> mine, std::span<const std::byte> all, int world_size) {
  require(all.size() == mine.size() * static_cast<std::size_t>(world_size),
          "all_gather: room for {} bytes, expected {} ranks x {} bytes", all.size(), world_size, mine.size());
}

}  // namespace lockstep::comm_detail
