#include "ops/cuda/id_upload.h"

#include <algorithm>
#include <utility>

namespace lockstep::cuda {

const std::int32_t* IdUpload::operator()(std::span<const std::int32_t> ids) {
  constexpr std::size_t kSmallest = std::size_t{64} << 10;
  if (ids.empty()) {
    return nullptr;
  }
  if (device_.size_bytes() < ids.size_bytes()) {
    compute_stream().synchronize();
    device_ = {};
    device_ = allocate_device(std::max(ids.size_bytes(), kSmallest));
  }
  Slot slot = take_slot(std::max(ids.size_bytes(), kSmallest));
  std::memcpy(slot.pinned.data(), ids.data(), ids.size_bytes());
  const cudaStream_t stream = compute_stream().get();
  check(cudaMemcpyAsync(device_.data(), slot.pinned.data(), ids.size_bytes(), cudaMemcpyHostToDevice, stream),
        "copying token ids");
  slot.copied.record(stream);
  slots_.push_back(std::move(slot));
  return reinterpret_cast<const std::int32_t*>(device_.data());
}

IdUpload::Slot IdUpload::take_slot(std::size_t size_bytes) {
  if (slots_.empty() || (slots_.size() < kMostSlots && !slots_.front().copied.is_done())) {
    return {allocate_pinned(size_bytes), Event()};
  }
  Slot slot = std::move(slots_.front());
  slots_.pop_front();
  slot.copied.synchronize();
  if (slot.pinned.size_bytes() < size_bytes) {
    slot.pinned = allocate_pinned(size_bytes);
  }
  return slot;
}

}  // namespace lockstep::cuda
