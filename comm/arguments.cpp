#include "comm/arguments.h"

#include <algorithm>

#include "base/error.h"

namespace lockstep::comm_detail {

void check_all_reduce(const BufferView& data) {
  require(data.dtype == DType::kF32 || data.dtype == DType::kF64,
          "all_reduce_sum: elements are {}, expected f32 or f64", name_of(data.dtype));
  require(data.device.kind == DeviceKind::kCpu, "all_reduce_sum: the buffer lies on GPU {}, expected memory of the CPU",
          data.device.index);
}

void check_reduce_scatter(const BufferView& data, std::span<const ElementRange> owned, int world_size) {
  check_all_reduce(data);
  check_all_gather_ranges(data, owned, world_size);
  std::uint64_t end = 0;
  for (const ElementRange& range : owned) {
    require(range.begin == end, "reduce_scatter_sum: a rank's elements begin at {}, expected {}, where the last ended",
            range.begin, end);
    end = range.end;
  }
  require(end == data.count, "reduce_scatter_sum: the ranks have {} of {} elements", end, data.count);
}

void check_all_gather_ranges(const BufferView& data, std::span<const ElementRange> owned, int world_size) {
  require(data.device.kind == DeviceKind::kCpu,
          "all_gather_ranges: the buffer lies on GPU {}, expected memory of the CPU", data.device.index);
  require(owned.size() == static_cast<std::size_t>(world_size), "all_gather_ranges: {} ranges for {} ranks",
          owned.size(), world_size);
  std::uint64_t end = 0;
  for (const ElementRange& range : owned) {
    require(range.begin <= range.end && range.end <= data.count && (range.size() == 0 || range.begin >= end),
            "all_gather_ranges: a rank has elements [{}, {}) of {}, after one that ends at {}", range.begin, range.end,
            data.count, end);
    end = std::max(end, range.end);
  }
}

void check_broadcast(int root, int world_size) {
  require(root >= 0 && root < world_size, "broadcast: the root is rank {}, expected 0 to {}", root, world_size - 1);
}

void check_all_gather(std::span<const std::byte> mine, std::span<const std::byte> all, int world_size) {
  require(all.size() == mine.size() * static_cast<std::size_t>(world_size),
          "all_gather: room for {} bytes, expected {} ranks x {} bytes", all.size(), world_size, mine.size());
}

}  // namespace lockstep::comm_detail
