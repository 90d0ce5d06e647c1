// What this machine's matrix kernels reach: the peak that MFU is measured against on a CPU.
#pragma once

#include "ops/backend.h"

namespace lockstep {

// Floating-point operations a second of the best of a few 960 x 960 x 960 products on the backend's threads. Takes
// some tens of milliseconds.
[[nodiscard]] double measure_gemm_rate(Backend& backend, DType dtype);

}  // namespace lockstep
