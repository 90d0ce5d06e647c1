#include "ops/cuda/id_upload.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace lockstep::cuda {

namespace {

std::span<std::int32_t> numbers(std::span<std::byte> bytes) {
  return {reinterpret_cast<std::int32_t*>(bytes.data()), bytes.size() / sizeof(std::int32_t)};
}

}  // namespace

const std::int32_t* IdUpload::operator()(std::size_t count, std::size_t most, Fill fill) {
  constexpr std::size_t kSmallest = std::size_t{64} << 10;
  if (count == 0) {
    return nullptr;
  }
  const std::size_t size_bytes = count * sizeof(std::int32_t);
  if (const std::size_t most_bytes = std::max(most * sizeof(std::int32_t), kSmallest);
      device_.size_bytes() < most_bytes) {
    recorder_.let_go(std::move(device_));
    device_ = allocate_device(most_bytes);
  }
  const cudaStream_t stream = compute_stream().get();
  const auto copy = [&](const void* pinned) {
    check(cudaMemcpyAsync(device_.data(), pinned, size_bytes, cudaMemcpyHostToDevice, stream), "copying token ids");
  };
  if (recorder_.is_capturing()) {
    copy(recorder_.input(size_bytes, [fill = std::move(fill)](std::span<std::byte> bytes) { fill(numbers(bytes)); }));
  } else {
    Slot slot = take_slot(std::max(size_bytes, kSmallest));
    fill(numbers({slot.pinned.data(), size_bytes}));
    copy(slot.pinned.data());
    slot.copied.record(stream);
    slots_.push_back(std::move(slot));
  }
  return reinterpret_cast<const std::int32_t*>(device_.data());
}

const std::int32_t* IdUpload::operator()(std::span<const std::int32_t> ids, std::int64_t least, std::int64_t end) {
  return (*this)(ids.size(), ids.size(), [ids, least, end](std::span<std::int32_t> to) {
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] < least || ids[i] >= end) {
        fail(ErrorCode::kCorrupt, "token {} of a batch is {}, expected one in [{}, {})", i, ids[i], least, end);
      }
      to[i] = ids[i];
    }
  });
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
