// The functions of the CUDA runtime that the project calls, for a GPU that is this process. They are as strict as the
// real ones where a mistake would pass here: sizes of launches, what a capture forbids, pageable memory, work in the
// legacy stream. Memory is not zeroed but full of NaNs.
#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
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
constexpr std::size_t kSharedBytes = std::size_t{48} << 10;  // of a kernel that asks for no more
constexpr std::size_t kMostThreads = 1024;

// Hopper's, or another card's.
std::size_t most_shared_bytes() { return setting("LOCKSTEP_EMULATED_SHARED_KIB", 227) << 10; }

thread_local int current_device = 0;

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

// An operation in a stream that a broken GPU no longer does.
cudaError_t put(cudaStream_t stream, std::function<void()> operation) {
  if (stream == nullptr) {
    std::fprintf(stderr, "cuda_emulator: work in the legacy stream\n");
    return answer(cudaErrorInvalidResourceHandle);
  }
  stream->enqueue([operation = std::move(operation)] {
    if (sticky_error() == cudaSuccess) {
      operation();
    }
  });
  return answer(cudaSuccess);
}

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

// The bytes of dynamic shared memory that kernels asked for.
class SharedLimits {
 public:
  void set(const void* kernel, std::size_t size_bytes) {
    const std::lock_guard lock(mutex_);
    limits_[kernel] = size_bytes;
  }
  [[nodiscard]] std::size_t get(const void* kernel) {
    const std::lock_guard lock(mutex_);
    const auto found = limits_.find(kernel);
    return found == limits_.end() ? kSharedBytes : found->second;
  }

 private:
  std::mutex mutex_;
  std::map<const void*, std::size_t> limits_;
};
SharedLimits& shared_limits() {
  static SharedLimits& limits = *new SharedLimits;
  return limits;
}

thread_local cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;

// Whether the fault has not been there before, in any process.
bool is_first_fault() {
  const char* const file = std::getenv("LOCKSTEP_EMULATED_FAULT_ONCE");
  if (file == nullptr) {
    return true;
  }
  std::FILE* const made = std::fopen(file, "wx");
  return made != nullptr && std::fclose(made) == 0;
}

cudaError_t not_while_capturing() {
  return capture_mode == cudaStreamCaptureModeRelaxed || may_interrupt() ? cudaSuccess
                                                                         : cudaErrorStreamCaptureUnsupported;
}

}  // namespace

namespace lockstep::cuda_emulator {

bool is_on_device(const void* data) { return device_memory().holds(data); }

cudaError_t launch(const char* name, const void* kernel, const Grid& grid, cudaStream_t stream,
                   std::function<void()> thread) {
  constexpr unsigned kMostInX = 0x7FFFFFFF;
  constexpr unsigned kMostInYZ = 0xFFFF;
  const std::size_t threads = std::size_t{grid.threads.x} * grid.threads.y * grid.threads.z;
  const bool has_blocks = grid.blocks.x > 0 && grid.blocks.y > 0 && grid.blocks.z > 0;
  if (threads == 0 || threads > kMostThreads || grid.threads.z > 64 || !has_blocks || grid.blocks.x > kMostInX ||
      grid.blocks.y > kMostInYZ || grid.blocks.z > kMostInYZ) {
    return answer(cudaErrorInvalidConfiguration);
  }
  if (grid.shared_bytes > shared_limits().get(kernel)) {
    return answer(cudaErrorInvalidValue);
  }
  static const std::uint64_t faulty = setting("LOCKSTEP_EMULATED_FAULT", 0);
  static const std::uint64_t faulty_gpu = setting("LOCKSTEP_EMULATED_FAULT_GPU", 0);
  const bool breaks =
      ++requests().launches == faulty && static_cast<std::uint64_t>(current_device) == faulty_gpu && is_first_fault();
  return put(stream, [name, grid, breaks, thread = std::move(thread)] {
    if (breaks) {
      break_device(cudaErrorECCUncorrectable);
      return;
    }
    run_grid(name, grid, thread);
  });
}

}  // namespace lockstep::cuda_emulator

// Devices and errors.

cudaError_t cudaGetDeviceCount(int* count) {
  *count = device_count();
  return *count > 0 ? cudaSuccess : answer(cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= device_count()) {
    return answer(cudaErrorInvalidDevice);
  }
  current_device = device;
  return answer(cudaSuccess);
}
cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return answer(cudaSuccess);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device < 0 || device >= device_count()) {
    return answer(cudaErrorInvalidDevice);
  }
  *properties = {};
  std::snprintf(properties->name, sizeof(properties->name), "NVIDIA H200 (emulated)");
  properties->major = 9;
  properties->minor = 0;
  properties->multiProcessorCount = 4;
  properties->totalGlobalMem = device_memory_bytes();
  return answer(cudaSuccess);
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int /*device*/) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return answer(cudaSuccess);
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return answer(cudaSuccess);
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(most_shared_bytes());
      return answer(cudaSuccess);
    default:
      std::fprintf(stderr, "cuda_emulator: attribute %d is not known\n", static_cast<int>(attribute));
      return answer(cudaErrorInvalidValue);
  }
}
cudaError_t cudaDeviceGetPCIBusId(char* bus_id, int length, int device) {
  std::snprintf(bus_id, static_cast<std::size_t>(length), "0000:%02X:00.0", 0x10 + device);
  return answer(cudaSuccess);
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return take_last_error(); }
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorECCUncorrectable:
      return "uncorrectable ECC error encountered";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    default: {
      thread_local char text[48];
      std::snprintf(text, sizeof(text), "error %d of the CUDA runtime", static_cast<int>(error));
      return text;
    }
  }
}

// Memory.

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
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
      static_cast<std::size_t>(value) > most_shared_bytes()) {
    return answer(cudaErrorInvalidValue);
  }
  shared_limits().set(kernel, static_cast<std::size_t>(value));
  return answer(cudaSuccess);
}

// Streams and events.

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned /*flags*/) {
  *stream = new Queue;
  return answer(cudaSuccess);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return answer(cudaSuccess);
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (const cudaError_t status = not_while_capturing(); status != cudaSuccess) {
    return answer(status);
  }
  queue_of(stream)->wait();
  return answer(cudaSuccess);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned /*flags*/) {
  return answer(queue_of(stream)->wait_for(event->point));
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned /*flags*/) {
  *event = new CUevent_st;
  return answer(cudaSuccess);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return answer(cudaSuccess);
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  event->point = queue_of(stream)->record();
  return answer(cudaSuccess);
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (const cudaError_t status = not_while_capturing(); status != cudaSuccess) {
    return answer(status);
  }
  if (event->point == nullptr) {
    return answer(cudaSuccess);
  }
  if (event->point->graph) {
    return answer(cudaErrorCapturedEvent);
  }
  return answer(event->point->is_passed() ? cudaSuccess : cudaErrorNotReady);
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (const cudaError_t status = not_while_capturing(); status != cudaSuccess) {
    return answer(status);
  }
  if (event->point == nullptr) {
    return answer(cudaSuccess);
  }
  if (event->point->graph) {
    return answer(cudaErrorCapturedEvent);
  }
  event->point->wait();
  return answer(cudaSuccess);
}

// Graphs.

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  return answer(queue_of(stream)->begin_capture(mode));
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  std::shared_ptr<Graph> captured;
  const cudaError_t status = queue_of(stream)->end_capture(captured);
  if (status == cudaSuccess) {
    *graph = new CUgraph_st{std::move(captured)};
  }
  return answer(status);
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, capture_mode);
  return answer(cudaSuccess);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* ready, cudaGraph_t graph, unsigned long long /*flags*/) {
  *ready = new CUgraphExec_st{graph->graph};
  return answer(cudaSuccess);
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return answer(cudaSuccess);
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready) {
  delete ready;
  return answer(cudaSuccess);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t stream) {
  if (queue_of(stream)->capture()) {
    return answer(cudaErrorStreamCaptureUnsupported);
  }
  ++requests().graphs;
  return put(stream, [graph = ready->graph] {
    for (const std::function<void()>& operation : graph->operations) {
      operation();
    }
  });
}
