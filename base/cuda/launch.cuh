// How kernels are started, and the memory that a block shares and whose size the launch gives. Only code of kernels
// includes it: in tests/cuda_emulator a file of the same name takes its place, which runs them on a CPU.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "base/cuda/runtime.h"

namespace lockstep::cuda {

struct LaunchShape {
  dim3 blocks;
  dim3 threads;
  std::size_t shared_bytes = 0;  // dynamic_shared_memory()
};

// Puts a kernel into `stream`. `name` is what a failure is told with. Throws Error(kDevice).
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
            const Arguments&... arguments) {
  kernel<<<shape.blocks, shape.threads, shape.shared_bytes, stream>>>(arguments...);
  check(cudaGetLastError(), name);
}

// Lets `kernel` have up to `size_bytes` of it, where that is more than the 48 KiB that it may have without. Throws
// Error(kDevice) that begins with `name`.
template <typename... Parameters>
void allow_shared_memory(const char* name, void (*kernel)(Parameters...), std::size_t size_bytes) {
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(size_bytes)),
        name);
}

// Bytes of it that a kernel may be allowed on the GPU in use.
[[nodiscard]] inline std::size_t most_shared_memory() {
  static const std::size_t bytes = [] {
    int device = 0;
    int most = 0;
    check(cudaGetDevice(&device), "device: asking which");
    check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "device: asking");
    return static_cast<std::size_t>(most);
  }();
  return bytes;
}

// Of the calling thread's block, aligned to 16 bytes.
__device__ inline char* dynamic_shared_memory() {
  extern __shared__ __align__(16) char shared[];
  return shared;
}

}  // namespace lockstep::cuda
