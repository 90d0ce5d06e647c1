#include <cmath>
#include <type_traits>

#include "ops/cuda/cross_entropy.h"
#include "ops/cuda/vector.cuh"

namespace lockstep::cuda {
namespace {

constexpr int kThreads = 1024;

// Where the numbers are bf16 or f16 anyway, the hardware's own exponential, which is off by a few units in the last
// place of f32.
template <typename In>
__device__ float exponential(float x) {
  if constexpr (std::is_same_v<In, float>) {
    return expf(x);
  } else {
    return __expf(x);
  }
}

// NaN when one of them is.
__device__ float larger(float a, float b) { return a > b || a != a ? a : b; }

// The largest of some numbers, and the sum of exp(number - largest).
struct SoftmaxSum {
  float largest;
  float sum;
};
__device__ SoftmaxSum merged(const SoftmaxSum& a, const SoftmaxSum& b) {
  const float largest = larger(a.largest, b.largest);
  if (largest == -INFINITY) {
    return {largest, 0};
  }
  return {largest, a.sum * expf(a.largest - largest) + b.sum * expf(b.largest - largest)};
}

__device__ SoftmaxSum merged_over_block(SoftmaxSum own) {
  __shared__ SoftmaxSum partial[kThreads / kWarp];
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const SoftmaxSum other{__shfl_xor_sync(0xffffffffU, own.largest, distance),
                           __shfl_xor_sync(0xffffffffU, own.sum, distance)};
    // The lower lane's comes first on both sides, so that both get the same bits.
    own = (threadIdx.x & static_cast<unsigned>(distance)) == 0 ? merged(own, other) : merged(other, own);
  }
  if (threadIdx.x % kWarp == 0) {
    partial[threadIdx.x / kWarp] = own;
  }
  __syncthreads();
  SoftmaxSum all = partial[0];
  for (int warp = 1; warp < kThreads / kWarp; ++warp) {
    all = merged(all, partial[warp]);
  }
  return all;
}

// A block for a row, which it reads twice: the second time out of the second-level cache, so blocks are large and few
// rows are under way. dlogits may be logits.
template <int N, typename In, typename T>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_kernel(const In* logits, std::int64_t stride, int vocabulary, const std::int32_t* targets,
                         float scale, T* dlogits, float* losses) {
  const std::int64_t row = blockIdx.x;
  const In* from = logits + row * stride;
  T* to = dlogits == nullptr ? nullptr : dlogits + row * stride;
  const std::int32_t target = targets[row];
  const int whole = vocabulary / N * N;
  const auto for_all = [&](const auto& packs, const auto& one) {
    for (int i = static_cast<int>(threadIdx.x) * N; i < whole; i += kThreads * N) {
      packs(i);
    }
    for (int i = whole + static_cast<int>(threadIdx.x); i < vocabulary; i += kThreads) {
      one(i);
    }
  };
  if (target < 0) {
    if (threadIdx.x == 0) {
      losses[row] = 0;
    }
    if (to != nullptr) {
      for_all([&](int i) { store(Values<N>{}, to + i); }, [&](int i) { to[i] = from_float<T>(0); });
    }
    return;
  }
  SoftmaxSum own{-INFINITY, 0};
  for_all(
      [&](int i) {
        const Values<N> values = load<N>(from + i);
        float largest = own.largest;
#pragma unroll
        for (int k = 0; k < N; ++k) {
          largest = larger(largest, values.v[k]);
        }
        float sum = own.largest == -INFINITY ? 0 : own.sum * exponential<In>(own.largest - largest);
#pragma unroll
        for (int k = 0; k < N; ++k) {
          sum += exponential<In>(values.v[k] - largest);
        }
        own = {largest, sum};
      },
      [&](int i) {
        own = merged(own, {to_float(from[i]), 1});
      });
  const SoftmaxSum softmax = merged_over_block(own);
  const float at_target = to_float(from[target]);
  if (threadIdx.x == 0) {
    losses[row] = static_cast<float>(log(static_cast<double>(softmax.sum)) +
                                     (static_cast<double>(softmax.largest) - static_cast<double>(at_target)));
  }
  if (to == nullptr) {
    return;
  }
  __syncthreads();  // the target's logit has been read
  const float factor = scale / softmax.sum;
  const auto gradient = [&](float logit, int i) {
    const float p = exponential<In>(logit - softmax.largest) * factor;
    return i == target ? p - scale : p;
  };
  for_all(
      [&](int i) {
        Values<N> values = load<N>(from + i);
#pragma unroll
        for (int k = 0; k < N; ++k) {
          values.v[k] = gradient(values.v[k], i + k);
        }
        store(values, to + i);
      },
      [&](int i) { to[i] = from_float<T>(gradient(to_float(from[i]), i)); });
}

struct Candidate {
  float logit;
  int token;
};
// The likelier of two, the lower token of equals. NaN is the likeliest of all.
__device__ Candidate likelier(const Candidate& a, const Candidate& b) {
  const bool is_first = a.logit != a.logit || a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
  return is_first ? a : b;
}

// A block for a row. A kernel of its own, so that training does not pay for it.
template <typename In>
__global__ void __launch_bounds__(kThreads) likeliest_kernel(const In* logits, std::int64_t stride, int vocabulary,
                                                             const std::int32_t* targets, std::int32_t* likeliest) {
  const std::int64_t row = blockIdx.x;
  if (targets[row] < 0) {
    if (threadIdx.x == 0) {
      likeliest[row] = -1;
    }
    return;
  }
  Candidate own{-INFINITY, vocabulary};
  for (int i = static_cast<int>(threadIdx.x); i < vocabulary; i += kThreads) {
    own = likelier(own, {to_float(logits[row * stride + i]), i});
  }
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    own = likelier(
        own, {__shfl_xor_sync(0xffffffffU, own.logit, distance), __shfl_xor_sync(0xffffffffU, own.token, distance)});
  }
  __shared__ Candidate partial[kThreads / kWarp];
  if (threadIdx.x % kWarp == 0) {
    partial[threadIdx.x / kWarp] = own;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (const Candidate& other : partial) {
      own = likelier(own, other);
    }
    likeliest[row] = std::isfinite(own.logit) ? own.token : -1;
  }
}

}  // namespace

void cross_entropy(const CrossEntropy& args, const std::int32_t* targets, cudaStream_t stream) {
  const std::int64_t rows = args.logits.rows();
  if (rows == 0) {
    return;
  }
  const DType in_dtype = args.logits.dtype();
  const DType out_dtype = args.dlogits.is_defined() ? args.dlogits.dtype() : in_dtype;
  with_working_types(in_dtype, out_dtype, [&](auto in, auto out) {
    using In = decltype(in);
    using T = decltype(out);
    const std::int64_t stride = args.logits.dim(-1);
    if (args.likeliest.is_defined()) {  // before gradients take the logits' place
      launch("likeliest tokens", likeliest_kernel<In>, {static_cast<unsigned>(rows), kThreads}, stream,
             pointer<const In>(args.logits.data()), stride, static_cast<int>(args.vocabulary), targets,
             pointer<std::int32_t>(args.likeliest.data()));
    }
    const auto run = [&](auto pack) {
      launch("cross-entropy", cross_entropy_kernel<decltype(pack)::value, In, T>,
             {static_cast<unsigned>(rows), kThreads}, stream, pointer<const In>(args.logits.data()), stride,
             static_cast<int>(args.vocabulary), targets, args.scale, pointer<T>(args.dlogits.data()),
             pointer<float>(args.losses.data()));
    };
    if (stride % kPack == 0 && are_aligned({args.logits.data(), args.dlogits.data()})) {
      run(std::integral_constant<int, kPack>{});
    } else {
      run(std::integral_constant<int, 1>{});
    }
  });
}

}  // namespace lockstep::cuda
