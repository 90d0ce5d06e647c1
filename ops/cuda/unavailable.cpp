// The twin of cuda_backend.cpp in a build without CUDA.
#include "base/cuda/devices.h"
#include "base/error.h"
#include "ops/backend.h"

namespace lockstep {

std::unique_ptr<Backend> make_cuda_backend(int /*index*/, int /*threads*/, bool /*tf32*/) {
  fail(ErrorCode::kUnsupported, "device: cuda: {}", cuda::list_devices().problem);
}

}  // namespace lockstep
