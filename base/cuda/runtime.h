// The CUDA runtime with owners and errors of this project. Included where CUDA is there only: ops/cuda and comm/nccl.
//
// A process drives one GPU. Its work is ordered by one stream, compute_stream(); what runs beside it (copies,
// collectives) has streams of its own, tied to that one by events.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

#include "base/buffer.h"

namespace lockstep::cuda {

// What a failed operation is told with: the operation, CUDA's own words, the GPU, and after an error that ends this
// process's use of the GPU (NVIDIA's "Xid") where its cause stands.
[[nodiscard]] std::string describe_failure(cudaError_t status, std::string_view operation, std::string_view device);

// Throws Error(kDevice) with describe_failure() of the GPU in use, named as use_device() found it, with its PCI bus id,
// unless `status` is success.
void check(cudaError_t status, std::string_view operation);

// Makes GPU `index` the one that this thread's calls go to. Throws Error(kUnsupported), as devices.h explains.
void use_device(int index);

// Of the GPU in use: ten times the major number and the minor one. Throws Error(kDevice).
[[nodiscard]] int compute_capability();
// From this one on, a GPU has bf16, TF32 and copies to shared memory that nobody waits for.
inline constexpr int kAmpere = 80;
// Throws Error(kUnsupported): that the GPU in use, of its compute capability, does not have `what`; which may go on
// with what to do.
[[noreturn]] void fail_for_want_of(std::string_view what);

class Stream {
 public:
  // Does not wait for the legacy stream.
  Stream();
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  [[nodiscard]] cudaStream_t get() const { return stream_; }
  // Blocks until everything in it is done. Throws Error(kDevice).
  void synchronize() const;

 private:
  cudaStream_t stream_ = nullptr;
};

// The stream that kernels of this process run in, made at the first call on the GPU that is in use then.
[[nodiscard]] const Stream& compute_stream();

// A point in a stream. Without times, which would make it slower.
class Event {
 public:
  Event();
  ~Event();
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(cudaStream_t stream);
  // What is put into `stream` from now on runs after the recorded point.
  void make_wait(cudaStream_t stream) const;
  // Whether the point has been passed; never blocks. Throws Error(kDevice).
  [[nodiscard]] bool is_done() const;
  // Blocks. Throws Error(kDevice).
  void synchronize() const;

 private:
  cudaEvent_t event_ = nullptr;
};

// Device memory, zeroed, aligned to 256 bytes. Throws Error(kDevice) that says how much was asked for, how much was
// free, and which settings lower it.
[[nodiscard]] Buffer allocate_device(std::size_t size_bytes);
// By this process, through allocate_device().
[[nodiscard]] std::size_t allocated_device_bytes();
// Host memory that the GPU copies from and to without a detour; zeroed.
[[nodiscard]] Buffer allocate_pinned(std::size_t size_bytes);

}  // namespace lockstep::cuda
