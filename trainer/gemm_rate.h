// What a device's matrix kernels reach: the peak that MFU is measured against where its vendor states none.
#pragma once

#include "ops/backend.h"

namespace lockstep {

// Device memory that is really there: every byte is `value`.
[[nodiscard]] Buffer filled_memory(Backend& backend, std::size_t size_bytes, std::byte value);

// Device memory of `count` elements of a working dtype between -1 and 1: on a GPU, products of numbers that are all
// alike are faster than of any others.
[[nodiscard]] Buffer random_memory(Backend& backend, std::size_t count, DType dtype);

// Floating-point operations a second at the best of a few attempts, which take some tens of milliseconds: of 960 x 960
// x 960 products, one on each of a CPU's threads at the same time; of one of 8192 x 8192 x 8192 on a GPU.
[[nodiscard]] double measure_gemm_rate(Backend& backend, DType dtype);

}  // namespace lockstep
