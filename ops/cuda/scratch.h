// Device memory for what a kernel needs between its parts. All kernels run in one stream, so one piece serves all of
// them, one after another; it grows in the first step and then stays.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>

#include "ops/cuda/recorder.h"

namespace lockstep::cuda {

class Scratch {
 public:
  explicit Scratch(Recorder& recorder) : recorder_(recorder) {}

  // Room for `count` elements, until the next call.
  template <typename T>
  [[nodiscard]] T* get(std::size_t count) {
    const std::size_t size_bytes = count * sizeof(T);
    if (memory_.size_bytes() < size_bytes) {
      recorder_.let_go(std::move(memory_));
      memory_ = allocate_device(std::max(size_bytes, kSmallest));
    }
    return reinterpret_cast<T*>(memory_.data());
  }

 private:
  static constexpr std::size_t kSmallest = std::size_t{1} << 20;
  Recorder& recorder_;
  Buffer memory_;
};

}  // namespace lockstep::cuda
