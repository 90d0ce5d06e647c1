// How kernels are started, and the memory that a block shares and whose size the launch gives. Only code of kernels
// includes it: in tests/cuda_emulator a file of the same name takes its place, which runs them on a CPU.
#pragma once

#include <cuda_runtime.h>

#include "base/cuda/launch_shape.h"
#include "base/cuda/runtime.h"

namespace lockstep::cuda {

// Puts a kernel into `stream`. `name` is what a failure is told with. Throws Error(kDevice).
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
            const Arguments&... arguments) {
  kernel<<<shape.blocks, shape.threads, shape.shared_bytes, stream>>>(arguments...);
  check(cudaGetLastError(), name);
}

// Of the calling thread's block, aligned to 16 bytes.
__device__ inline char* dynamic_shared_memory() {
  extern __shared__ __align__(16) char shared[];
  return shared;
}

}  // namespace lockstep::cuda
