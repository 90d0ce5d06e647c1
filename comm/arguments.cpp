#include "comm/arguments.h"

#include <algorithm>
#include <string>

#include "base/error.h"

namespace lockstep::comm_detail {

namespace {

std::string text_of(Device device) {
  return device.kind == DeviceKind::kCpu ? "memory of the CPU" : fmt::format("memory of GPU {}", device.index);
}

void check_place(const char* call, const BufferView& data, Device place) {
  if (data.device != place) {
    fail(ErrorCode::kUsage, "{}: the buffer lies in {}, expected {}", call, text_of(data.device), text_of(place));
  }
}

void check_sum(const char* call, const BufferView& data, Device place) {
  require(data.dtype == DType::kF32 || data.dtype == DType::kF64, "{}: elements are {}, expected f32 or f64", call,
          name_of(data.dtype));
  check_place(call, data, place);
}

void check_count(const char* call, std::span<const ElementRange> owned, int world_size) {
  require(owned.size() == static_cast<std::size_t>(world_size), "{}: {} ranges for {} ranks", call, owned.size(),
          world_size);
}

}  // namespace

void check_all_reduce(const BufferView& data, Device place) { check_sum("all_reduce_sum", data, place); }

void check_reduce_scatter(const BufferView& data, std::span<const ElementRange> owned, int world_size, Device place) {
  check_sum("reduce_scatter_sum", data, place);
  check_count("reduce_scatter_sum", owned, world_size);
  std::uint64_t end = 0;
  for (const ElementRange& range : owned) {
    require(range.begin == end && range.end >= range.begin,
            "reduce_scatter_sum: a rank has elements [{}, {}), expected them to begin at {}, where the last ended",
            range.begin, range.end, end);
    end = range.end;
  }
  require(end == data.count, "reduce_scatter_sum: the ranks have {} of {} elements", end, data.count);
}

void check_all_gather_ranges(const BufferView& data, std::span<const ElementRange> owned, int world_size,
                             Device place) {
  check_place("all_gather_ranges", data, place);
  check_count("all_gather_ranges", owned, world_size);
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
