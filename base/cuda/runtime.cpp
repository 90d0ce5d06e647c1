#include "base/cuda/runtime.h"

#include <fmt/format.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>

#include "base/cuda/devices.h"
#include "base/error.h"

namespace lockstep::cuda {
namespace {

std::atomic<std::size_t> allocated_bytes = 0;

// Of the GPU that this process drives, remembered for when it no longer answers.
class DeviceName {
 public:
  void set(std::string name) {
    const std::lock_guard lock(mutex_);
    name_ = std::move(name);
  }
  [[nodiscard]] std::string get() {
    const std::lock_guard lock(mutex_);
    return name_;
  }

 private:
  std::mutex mutex_;
  std::string name_ = "a GPU that was not chosen yet";
};

DeviceName& device_name() {
  static DeviceName name;
  return name;
}

// Whether no call of this process reaches the GPU after it: the card, its link or a kernel failed, and the driver has
// written an Xid about it.
bool is_end_of_device(cudaError_t status) {
  switch (status) {
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorNoDevice:
    case cudaErrorUnknown:
      return true;
    default:
      return false;
  }
}

}  // namespace

std::string describe_failure(cudaError_t status, std::string_view operation, std::string_view device) {
  return fmt::format("{}: {} on {}{}", operation, cudaGetErrorString(status), device,
                     is_end_of_device(status) ? "; why, `dmesg | grep Xid` on this host may tell" : "");
}

void check(cudaError_t status, std::string_view operation) {
  if (status != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    fail(ErrorCode::kDevice, "{}", describe_failure(status, operation, device_name().get()));
  }
}

void use_device(int index) {
  const DeviceList list = list_devices();
  if (!list.problem.empty()) {
    fail(ErrorCode::kUnsupported, "device: cuda: {}", list.problem);
  }
  if (index < 0 || static_cast<std::size_t>(index) >= list.devices.size()) {
    fail(ErrorCode::kUnsupported, "device: GPU {} was asked for, this machine shows {}", index, list.devices.size());
  }
  const DeviceInfo& device = list.devices[static_cast<std::size_t>(index)];
  if (!device.problem.empty()) {
    fail(ErrorCode::kUnsupported, "device: GPU {} ({}): {}", index, device.name, device.problem);
  }
  device_name().set(fmt::format("GPU {} ({}, PCI {})", index, device.name, device.bus_id));
  check(cudaSetDevice(index), "device: selecting");
}

int compute_capability() {
  int device = 0;
  int major = 0;
  int minor = 0;
  check(cudaGetDevice(&device), "device: asking which");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "device: asking");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "device: asking");
  return 10 * major + minor;
}

void fail_for_want_of(std::string_view what) {
  const int capability = compute_capability();
  fail(ErrorCode::kUnsupported, "device: {} has compute capability {}.{} and no {}", device_name().get(),
       capability / 10, capability % 10, what);
}

Stream::Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "device: making a stream"); }
Stream::~Stream() { static_cast<void>(cudaStreamDestroy(stream_)); }
void Stream::synchronize() const { check(cudaStreamSynchronize(stream_), "device: waiting"); }

const Stream& compute_stream() {
  // Never destroyed: at the process's end the runtime may be gone before it.
  static const Stream& stream = *new Stream;
  return stream;
}

Event::Event() { check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "device: making an event"); }
Event::~Event() {
  if (event_ != nullptr) {
    static_cast<void>(cudaEventDestroy(event_));
  }
}
void Event::record(cudaStream_t stream) { check(cudaEventRecord(event_, stream), "device: recording an event"); }
void Event::make_wait(cudaStream_t stream) const {
  check(cudaStreamWaitEvent(stream, event_, 0), "device: waiting for an event");
}
bool Event::is_done() const {
  const cudaError_t status = cudaEventQuery(event_);
  if (status == cudaErrorNotReady) {
    return false;
  }
  check(status, "device: an earlier operation");
  return true;
}
void Event::synchronize() const { check(cudaEventSynchronize(event_), "device: waiting"); }

Buffer allocate_device(std::size_t size_bytes) {
  if (size_bytes == 0) {
    return {};
  }
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, size_bytes);
  if (status == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    std::size_t free_bytes = 0;
    std::size_t total_bytes = 0;
    static_cast<void>(cudaMemGetInfo(&free_bytes, &total_bytes));
    constexpr double kMib = 1 << 20;
    fail(ErrorCode::kDevice,
         "out of memory on {}: {:.0f} MiB asked for, {:.0f} of {:.0f} MiB free; a smaller train.micro_batch_size (with "
         "more train.micro_batches), train.recompute: block or comm.zero: 1 needs less",
         device_name().get(), static_cast<double>(size_bytes) / kMib, static_cast<double>(free_bytes) / kMib,
         static_cast<double>(total_bytes) / kMib);
  }
  check(status, "device: allocating memory");
  allocated_bytes += size_bytes;
  Buffer buffer(data, size_bytes, [size_bytes](void* memory) {
    allocated_bytes -= size_bytes;
    static_cast<void>(cudaFree(memory));
  });
  check(cudaMemsetAsync(data, 0, size_bytes, compute_stream().get()), "device: clearing memory");
  return buffer;
}

std::size_t allocated_device_bytes() { return allocated_bytes; }

Buffer allocate_pinned(std::size_t size_bytes) {
  if (size_bytes == 0) {
    return {};
  }
  void* data = nullptr;
  check(cudaMallocHost(&data, size_bytes), "device: allocating pinned host memory");
  Buffer buffer(data, size_bytes, [](void* memory) { static_cast<void>(cudaFreeHost(memory)); });
  std::memset(data, 0, size_bytes);
  return buffer;
}

}  // namespace lockstep::cuda
