// Layer and RMS norms; see ops/backend.h. All run in `stream`.
#pragma once

#include "ops/backend.h"
#include "ops/cuda/scratch.h"

namespace lockstep::cuda {

void norm_forward(const NormForward& norm, cudaStream_t stream);
void norm_backward(const NormBackward& norm, Scratch& scratch, cudaStream_t stream);

}  // namespace lockstep::cuda
