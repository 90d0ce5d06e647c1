// Which elements dropout keeps, some at a time.
#pragma once

#include "base/random.h"
#include "ops/backend.h"
#include "ops/cuda/vector.cuh"

namespace lockstep::cuda {

// What dropout multiplies elements [i, i + N) by: `factor` or 0; i is a multiple of N.
template <int N>
__device__ Values<N> dropout_factors(const Dropout& dropout, float factor, std::int64_t i) {
  Values<N> factors;
  if constexpr (N == 1) {
    const auto words = philox(dropout.key, static_cast<std::uint64_t>(i / 4));
    factors.v[0] = uniform_float(words[i % 4]) >= dropout.probability ? factor : 0.0F;
  } else {
#pragma unroll
    for (int part = 0; part < N / 4; ++part) {
      const auto words = philox(dropout.key, static_cast<std::uint64_t>(i / 4 + part));
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        factors.v[part * 4 + w] = uniform_float(words[w]) >= dropout.probability ? factor : 0.0F;
      }
    }
  }
  return factors;
}

}  // namespace lockstep::cuda
