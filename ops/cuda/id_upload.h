// Numbers that the host has ready - token ids, targets, rows sorted by token - on their way to the GPU. They are copied
// into pinned memory first, so the caller's may go and the host does not wait.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <span>

#include "ops/cuda/recorder.h"

namespace lockstep::cuda {

class IdUpload {
 public:
  explicit IdUpload(Recorder& recorder) : recorder_(recorder) {}

  // Writes all of what it is given.
  using Fill = std::function<void(std::span<std::int32_t>)>;

  // `count` numbers in device memory, for kernels that are put into compute_stream() before the next call. `fill`
  // writes them: now, and in a recording before each run, too. The memory has room for `most` of them.
  [[nodiscard]] const std::int32_t* operator()(std::size_t count, std::size_t most, Fill fill);
  // Ids that are in [least, end). In a recording they are read again before each run, which throws Error(kCorrupt) for
  // any other.
  [[nodiscard]] const std::int32_t* operator()(std::span<const std::int32_t> ids, std::int64_t least, std::int64_t end);

  [[nodiscard]] bool is_recording() const { return recorder_.is_capturing(); }

 private:
  struct Slot {
    Buffer pinned;
    Event copied;
  };
  // The oldest slot, when its copy is done or there are many already.
  [[nodiscard]] Slot take_slot(std::size_t size_bytes);

  static constexpr std::size_t kMostSlots = 64;
  Recorder& recorder_;
  std::deque<Slot> slots_;  // the oldest first
  Buffer device_;
};

}  // namespace lockstep::cuda
