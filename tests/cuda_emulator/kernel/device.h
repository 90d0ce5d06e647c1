// What the compiler of kernels brings along and a C++ compiler does not: included before each of them when they are
// compiled to run on a CPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "tests/cuda_emulator/block.h"

#undef __shared__
#define __shared__ static thread_local  // one thread of the CPU runs a whole block
#define __launch_bounds__(...)
#undef __forceinline__
#define __forceinline__ inline
#define threadIdx (::lockstep::cuda_emulator::thread_index())
#define blockIdx (::lockstep::cuda_emulator::block_index())
#define blockDim (::lockstep::cuda_emulator::block_size())
#define gridDim (::lockstep::cuda_emulator::grid_size())

inline void __syncthreads() { lockstep::cuda_emulator::wait_for_block(); }
[[noreturn]] inline void __trap() { lockstep::cuda_emulator::give_up("a kernel that is not meant for this card runs"); }
inline void __syncwarp() { static_cast<void>(lockstep::cuda_emulator::exchange_in_warp(0, 0)); }

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int distance) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t));
  static_cast<void>(mask);  // whole warps everywhere
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = lockstep::cuda_emulator::exchange_in_warp(bits, distance);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// The product is exact; that the sum is rounded twice is far below what the tests compare. A call of libm's for each is
// slow.
inline float multiply_add(float a, float b, float c) {
  return static_cast<float>(static_cast<double>(a) * static_cast<double>(b) + static_cast<double>(c));
}
#define fmaf multiply_add
inline float __expf(float x) { return std::exp(x); }
inline float rsqrtf(float x) { return 1.0F / std::sqrt(x); }
using std::max;
using std::min;
