// How large a kernel's launch is: what launch.cuh and its twin in the emulator share.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "base/cuda/runtime.h"

namespace lockstep::cuda {

struct LaunchShape {
  dim3 blocks;
  dim3 threads;
  std::size_t shared_bytes = 0;  // dynamic_shared_memory()
};

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

}  // namespace lockstep::cuda
