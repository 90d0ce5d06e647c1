// Memory and copies of the emulated GPU. What lies past an allocation, or was freed, cannot be touched; memory is not
// zeroed but full of NaNs.
#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <optional>
#include <utility>

#include "tests/cuda_emulator/device.h"
#include "tests/cuda_emulator/queue.h"

using namespace lockstep::cuda_emulator;

namespace {

constexpr std::align_val_t kAlignment{256};

// Allocations by their first byte.
class Memory {
 public:
  void add(void* data, std::size_t size_bytes) {
    const std::lock_guard lock(mutex_);
    pieces_[static_cast<std::byte*>(data)] = size_bytes;
    total_bytes_ += size_bytes;
  }
  // How large it was; nothing where `data` is no allocation.
  std::optional<std::size_t> remove(void* data) {
    const std::lock_guard lock(mutex_);
    const auto found = pieces_.find(static_cast<std::byte*>(data));
    if (found == pieces_.end()) {
      return std::nullopt;
    }
    const std::size_t size_bytes = found->second;
    total_bytes_ -= size_bytes;
    pieces_.erase(found);
    return size_bytes;
  }
  [[nodiscard]] bool holds(const void* data) {
    const std::lock_guard lock(mutex_);
    const auto* const byte = static_cast<const std::byte*>(data);
    auto after = pieces_.upper_bound(const_cast<std::byte*>(byte));
    return after != pieces_.begin() && byte < (--after)->first + after->second;
  }
  [[nodiscard]] std::size_t total_bytes() {
    const std::lock_guard lock(mutex_);
    return total_bytes_;
  }

 private:
  std::mutex mutex_;
  std::map<std::byte*, std::size_t> pieces_;
  std::size_t total_bytes_ = 0;
};

// Never destroyed: memory is freed up to the process's end.
Memory& device_memory() {
  static Memory& memory = *new Memory;
  return memory;
}
Memory& pinned_memory() {
  static Memory& memory = *new Memory;
  return memory;
}

// How an allocation lies in whole pages: it ends where a page begins that cannot be touched.
struct Mapping {
  std::size_t begin = 0;
  std::size_t used_bytes = 0;
  std::size_t total_bytes = 0;
};
Mapping mapping_of(std::size_t size_bytes) {
  constexpr std::size_t kPage = 4096;
  const auto granule = static_cast<std::size_t>(kAlignment);
  const std::size_t padded = std::max((size_bytes + granule - 1) / granule, std::size_t{1}) * granule;
  const std::size_t pages = (padded + kPage - 1) / kPage * kPage;
  return {pages - padded, pages, pages + kPage};
}

bool is_pageable(const void* data) { return !device_memory().holds(data) && !pinned_memory().holds(data); }

// Copies from and to pageable memory are done when the call returns, as far as the host can tell.
cudaError_t put_copy(cudaStream_t stream, const void* from, const void* to, std::function<void()> operation) {
  const cudaError_t status = put(stream, std::move(operation));
  if (status == cudaSuccess && (is_pageable(from) || is_pageable(to)) && !queue_of(stream)->capture()) {
    queue_of(stream)->wait();
  }
  return status;
}

bool is_of(cudaMemcpyKind kind, const void* from, const void* to) {
  const bool from_device = device_memory().holds(from);
  const bool to_device = device_memory().holds(to);
  switch (kind) {
    case cudaMemcpyHostToDevice:
      return !from_device && to_device;
    case cudaMemcpyDeviceToHost:
      return from_device && !to_device;
    case cudaMemcpyDeviceToDevice:
      return from_device && to_device;
    case cudaMemcpyHostToHost:
      return !from_device && !to_device;
    default:
      return true;
  }
}

}  // namespace

namespace lockstep::cuda_emulator {

bool is_on_device(const void* data) { return device_memory().holds(data); }

}  // namespace lockstep::cuda_emulator

cudaError_t cudaMalloc(void** data, std::size_t size_bytes) {
  if (const cudaError_t status = not_while_capturing(); status != cudaSuccess) {
    return answer(status);
  }
  if (device_memory().total_bytes() + size_bytes > device_memory_bytes()) {
    return answer(cudaErrorMemoryAllocation);
  }
  const Mapping mapping = mapping_of(size_bytes);
  void* const memory =
      mmap(nullptr, mapping.total_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, mapping.used_bytes, PROT_READ | PROT_WRITE) != 0) {
    return answer(cudaErrorMemoryAllocation);
  }
  ++requests().allocations;
  *data = static_cast<std::byte*>(memory) + mapping.begin;
  static_cast<void>(madvise(memory, mapping.used_bytes, MADV_HUGEPAGE));  // to touch it costs less
  std::memset(*data, 0xFF, size_bytes);
  device_memory().add(*data, size_bytes);
  return answer(cudaSuccess);
}
cudaError_t cudaFree(void* data) {
  if (data == nullptr) {
    return answer(cudaSuccess);
  }
  if (const cudaError_t status = not_while_capturing(); status != cudaSuccess) {
    return answer(status);
  }
  wait_for_all_streams();
  const std::optional<std::size_t> size_bytes = device_memory().remove(data);
  if (!size_bytes) {
    return answer(cudaErrorInvalidValue);
  }
  const Mapping mapping = mapping_of(*size_bytes);
  void* const memory = static_cast<std::byte*>(data) - mapping.begin;
  static_cast<void>(madvise(memory, mapping.used_bytes, MADV_DONTNEED));
  static_cast<void>(mprotect(memory, mapping.used_bytes, PROT_NONE));  // its address is not given again
  return answer(cudaSuccess);
}
cudaError_t cudaMallocHost(void** data, std::size_t size_bytes) {
  if (const cudaError_t status = not_while_capturing(); status != cudaSuccess) {
    return answer(status);
  }
  *data = ::operator new(size_bytes, kAlignment);
  pinned_memory().add(*data, size_bytes);
  return answer(cudaSuccess);
}
cudaError_t cudaFreeHost(void* data) {
  if (const cudaError_t status = not_while_capturing(); status != cudaSuccess) {
    return answer(status);
  }
  wait_for_all_streams();
  if (!pinned_memory().remove(data).has_value()) {
    return answer(cudaErrorInvalidValue);
  }
  ::operator delete(data, kAlignment);
  return answer(cudaSuccess);
}
cudaError_t cudaMemGetInfo(std::size_t* free_bytes, std::size_t* total_bytes) {
  *total_bytes = device_memory_bytes();
  *free_bytes = *total_bytes - device_memory().total_bytes();
  return answer(cudaSuccess);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t size_bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  if (size_bytes == 0) {
    return answer(cudaSuccess);
  }
  if (!is_of(kind, from, to)) {
    return answer(cudaErrorInvalidMemcpyDirection);
  }
  return put_copy(stream, from, to, [=] { std::memcpy(to, from, size_bytes); });
}
cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                              std::size_t width, std::size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  if (width > to_pitch || width > from_pitch) {
    return answer(cudaErrorInvalidPitchValue);
  }
  if (!is_of(kind, from, to)) {
    return answer(cudaErrorInvalidMemcpyDirection);
  }
  return put_copy(stream, from, to, [=] {
    for (std::size_t row = 0; row < height; ++row) {
      std::memcpy(static_cast<std::byte*>(to) + row * to_pitch, static_cast<const std::byte*>(from) + row * from_pitch,
                  width);
    }
  });
}
cudaError_t cudaMemsetAsync(void* data, int value, std::size_t size_bytes, cudaStream_t stream) {
  if (size_bytes > 0 && !device_memory().holds(data)) {
    return answer(cudaErrorInvalidValue);
  }
  return put(stream, [=] { std::memset(data, value, size_bytes); });
}
cudaError_t cudaMemset2DAsync(void* data, std::size_t pitch, int value, std::size_t width, std::size_t height,
                              cudaStream_t stream) {
  if (width > pitch) {
    return answer(cudaErrorInvalidPitchValue);
  }
  return put(stream, [=] {
    for (std::size_t row = 0; row < height; ++row) {
      std::memset(static_cast<std::byte*>(data) + row * pitch, value, width);
    }
  });
}
