// What the kernels share: numbers eight at a time, sums over warps and blocks, launches.
//
// Element sums run in f32. Every reduction has an order that is fixed by the shape alone, so results are the same each
// time; no kernel uses atomic additions.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "base/cuda/launch.cuh"
#include "base/dtype.h"

namespace lockstep::cuda {

inline constexpr int kPack = 8;  // elements that a thread moves at once: 16 bytes of bf16 and f16, twice that of f32
inline constexpr int kWarp = 32;

// Calls f with a value of the type that kernels know `dtype` (bf16 or f16) as.
template <typename F>
void with_narrow_type(DType dtype, const F& f) {
  assert(dtype == DType::kBF16 || dtype == DType::kF16);
  if (dtype == DType::kBF16) {
    f(__nv_bfloat16{});
  } else {
    f(__half{});
  }
}
// Of f32, bf16 or f16.
template <typename F>
void with_working_type(DType dtype, const F& f) {
  if (dtype == DType::kF32) {
    f(float{});
  } else {
    with_narrow_type(dtype, f);
  }
}
// Of two working dtypes, of which the first is f32 or the same as the second.
template <typename F>
void with_working_types(DType first, DType second, const F& f) {
  with_working_type(second, [&](auto type) {
    if (first == second) {
      f(type, type);
    } else {
      assert(first == DType::kF32);
      f(float{}, type);
    }
  });
}

template <typename T>
[[nodiscard]] T* pointer(void* data) {
  return static_cast<T*>(data);
}

template <int N>
struct Values {
  float v[N];
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }
template <typename T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ inline __half from_float<__half>(float x) {
  return __float2half_rn(x);  // what is too large becomes infinite
}
// What x is once it has been stored as T.
template <typename T>
__device__ float rounded(float x) {
  return to_float(from_float<T>(x));
}

// N elements; for N = kPack, `from` is aligned to 16 bytes.
template <int N, typename T>
__device__ Values<N> load(const T* from) {
  Values<N> values;
  if constexpr (N == kPack) {
    constexpr int kWords = kPack * sizeof(T) / sizeof(uint4);
    union {
      uint4 words[kWords];
      T elements[N];
    } pack;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      pack.words[w] = reinterpret_cast<const uint4*>(from)[w];
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
      values.v[i] = to_float(pack.elements[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      values.v[i] = to_float(from[i]);
    }
  }
  return values;
}

template <int N, typename T>
__device__ void store(const Values<N>& values, T* to) {
  if constexpr (N == kPack) {
    constexpr int kWords = kPack * sizeof(T) / sizeof(uint4);
    union {
      uint4 words[kWords];
      T elements[N];
    } pack;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      pack.elements[i] = from_float<T>(values.v[i]);
    }
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      reinterpret_cast<uint4*>(to)[w] = pack.words[w];
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      to[i] = from_float<T>(values.v[i]);
    }
  }
}

[[nodiscard]] inline bool are_aligned(std::initializer_list<const void*> pointers) {
  for (const void* pointer : pointers) {
    if (reinterpret_cast<std::uintptr_t>(pointer) % 16 != 0) {
      return false;
    }
  }
  return true;
}

// The sum over `lanes` neighbouring threads of a warp, a power of two, known to all of them.
template <int lanes = kWarp, typename T>
__device__ T sum_over_lanes(T value) {
#pragma unroll
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffU, value, distance);
  }
  return value;
}
template <int lanes = kWarp>
__device__ float max_over_lanes(float value) {
#pragma unroll
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffU, value, distance));
  }
  return value;
}

// The sum over a block of kThreads threads, known to all of them.
template <int kThreads, typename T>
__device__ T sum_over_block(T value) {
  __shared__ T partial[kThreads / kWarp];
  value = sum_over_lanes(value);
  __syncthreads();  // an earlier call may still be reading
  if (threadIdx.x % kWarp == 0) {
    partial[threadIdx.x / kWarp] = value;
  }
  __syncthreads();
  T sum = 0;
#pragma unroll
  for (int warp = 0; warp < kThreads / kWarp; ++warp) {
    sum += partial[warp];
  }
  return sum;
}

[[nodiscard]] constexpr std::int64_t divided_up(std::int64_t n, std::int64_t by) { return (n + by - 1) / by; }

// Calls f.at<N>(i) for pieces of N = kPack or 1 elements from i on that make up [0, n).
template <typename F>
__global__ void sweep_kernel(std::int64_t packs, std::int64_t n, F f) {
  const std::int64_t thread = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (thread < packs) {
    f.template at<kPack>(thread * kPack);
  } else if (const std::int64_t i = packs * kPack + (thread - packs); i < n) {
    f.template at<1>(i);
  }
}

// `in_packs`: every pointer is aligned, and pieces of kPack elements do not cross what must not be crossed.
template <typename F>
void sweep(std::int64_t n, bool in_packs, cudaStream_t stream, const char* name, const F& f) {
  constexpr int kThreads = 256;
  if (n == 0) {
    return;
  }
  const std::int64_t packs = in_packs ? n / kPack : 0;
  const std::int64_t threads = packs + (n - packs * kPack);
  launch(name, sweep_kernel<F>, {static_cast<unsigned>(divided_up(threads, kThreads)), kThreads}, stream, packs, n, f);
}

}  // namespace lockstep::cuda
