// The emulator's streams: what is put into one runs on a thread of its own, in order, as on a GPU beside what other
// streams and the host do. Libraries that work in streams (cublaslt.cpp, nccl.cpp) see this header only, and call it
// through the stream's table of functions.
#pragma once

#include <driver_types.h>

#include <functional>

#include "tests/cuda_emulator/block.h"

// What a cudaStream_t points to.
struct CUstream_st {
  CUstream_st() = default;
  CUstream_st(const CUstream_st&) = delete;
  CUstream_st& operator=(const CUstream_st&) = delete;
  virtual ~CUstream_st() = default;

  // Appends to the stream, or to the graph that it is captured into.
  virtual void enqueue(std::function<void()> operation) = 0;
  // Whether what `data` points to is a GPU's memory, where kernels and products want it.
  [[nodiscard]] virtual bool is_on_device(const void* data) const = 0;
};

namespace lockstep::cuda_emulator {

// As a launch of `kernel` fails or succeeds on a GPU.
[[nodiscard]] bool is_on_device(const void* data);
[[nodiscard]] cudaError_t launch(const char* name, const void* kernel, const Grid& grid, cudaStream_t stream,
                                 std::function<void()> thread);

}  // namespace lockstep::cuda_emulator
