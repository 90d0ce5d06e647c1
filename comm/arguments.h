// What every backend checks about the arguments of a call, before it does anything. Each throws Error(kUsage). `place`
// is where the backend wants the buffer.
#pragma once

#include <cstddef>
#include <span>

#include "base/buffer.h"
#include "base/device.h"

namespace lockstep::comm_detail {

void check_all_reduce(const BufferView& data, Device place = {});
void check_reduce_scatter(const BufferView& data, std::span<const ElementRange> owned, int world_size,
                          Device place = {});
void check_all_gather_ranges(const BufferView& data, std::span<const ElementRange> owned, int world_size,
                             Device place = {});
void check_broadcast(int root, int world_size);
void check_all_gather(std::span<const std::byte> mine, std::span<const std::byte> all, int world_size);

}  // namespace lockstep::comm_detail
