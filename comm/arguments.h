// What every backend checks about the arguments of a call, before it does anything. Each throws Error(kUsage).
#pragma once

#include <cstddef>
#include <span>

#include "base/buffer.h"

namespace lockstep::comm_detail {

void check_all_reduce(const BufferView& data);
void check_reduce_scatter(const BufferView& data, std::span<const ElementRange> owned, int world_size);
void check_all_gather_ranges(const BufferView& data, std::span<const ElementRange> owned, int world_size);
void check_broadcast(int root, int world_size);
void check_all_gather(std::span<const std::byte> mine, std::span<const std::byte> all, int world_size);

}  // namespace lockstep::comm_detail
