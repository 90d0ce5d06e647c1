// The functions of the CUDA runtime that the project calls, for a GPU that is this process; memory.cpp has those of
// memory. They are as strict as the real ones where a mistake would pass here: sizes of launches, what a capture
// forbids, work in the legacy stream.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <utility>

#include "tests/cuda_emulator/device.h"
#include "tests/cuda_emulator/queue.h"

using namespace lockstep::cuda_emulator;

namespace {

constexpr std::size_t kSharedBytes = std::size_t{48} << 10;  // of a kernel that asks for no more
constexpr std::size_t kMostThreads = 1024;

// Hopper's, or another card's.
std::size_t most_shared_bytes() { return setting("LOCKSTEP_EMULATED_SHARED_KIB", capability() < 80 ? 64 : 227) << 10; }

thread_local int current_device = 0;

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

// What the host's question about an event fails with.
cudaError_t may_ask(cudaEvent_t event) {
  if (const cudaError_t status = not_while_capturing(); status != cudaSuccess) {
    return status;
  }
  return event->point != nullptr && event->point->graph ? cudaErrorCapturedEvent : cudaSuccess;
}

}  // namespace

namespace lockstep::cuda_emulator {

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

cudaError_t not_while_capturing() {
  return capture_mode == cudaStreamCaptureModeRelaxed || may_interrupt() ? cudaSuccess
                                                                         : cudaErrorStreamCaptureUnsupported;
}

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
  std::snprintf(properties->name, sizeof(properties->name), "%s (emulated)",
                capability() < 80 ? "Tesla T4" : "NVIDIA H200");
  properties->major = capability() / 10;
  properties->minor = capability() % 10;
  properties->multiProcessorCount = 4;
  properties->totalGlobalMem = device_memory_bytes();
  return answer(cudaSuccess);
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int /*device*/) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = capability() / 10;
      return answer(cudaSuccess);
    case cudaDevAttrComputeCapabilityMinor:
      *value = capability() % 10;
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
  if (const cudaError_t status = may_ask(event); status != cudaSuccess) {
    return answer(status);
  }
  return answer(event->point == nullptr || event->point->is_passed() ? cudaSuccess : cudaErrorNotReady);
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (const cudaError_t status = may_ask(event); status != cudaSuccess) {
    return answer(status);
  }
  if (event->point != nullptr) {
    event->point->wait();
  }
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
