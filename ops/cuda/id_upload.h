// Token ids and the like on their way to the GPU: through pinned memory, without waiting for the GPU.
#pragma once

#include <cstdint>
#include <cstring>
#include <deque>
#include <span>
#include <vector>

#include "base/cuda/runtime.h"

namespace lockstep::cuda {

class IdUpload {
 public:
  // The ids in device memory, for kernels that are put into compute_stream() before the next call.
  [[nodiscard]] const std::int32_t* operator()(std::span<const std::int32_t> ids);

 private:
  struct Slot {
    Buffer pinned;
    Event copied;
  };
  // The oldest slot, when its copy is done or there are many already.
  [[nodiscard]] Slot take_slot(std::size_t size_bytes);

  static constexpr std::size_t kMostSlots = 64;
  std::deque<Slot> slots_;  // the oldest first
  Buffer device_;
};

}  // namespace lockstep::cuda
