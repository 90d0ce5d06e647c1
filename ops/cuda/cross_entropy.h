// Softmax and cross-entropy; see ops/backend.h.
#pragma once

#include <cuda_runtime_api.h>

#include "ops/backend.h"

namespace lockstep::cuda {

// `targets` are the args' own, on the device.
void cross_entropy(const CrossEntropy& args, const std::int32_t* targets, cudaStream_t stream);

}  // namespace lockstep::cuda
