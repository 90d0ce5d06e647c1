// What this machine's matrix kernels reach: the peak that MFU is measured against on a CPU.
#pragma once

#include "ops/backend.h"

namespace lockstep {

// Floating-point operations a second of 960 x 960 x 960 products, one on each of the backend's threads at the same
// time, at the best of a few attempts. Takes some tens of milliseconds.
[[nodiscard]] double measure_gemm_rate(Backend& backend, DType dtype);

}  // namespace lockstep
