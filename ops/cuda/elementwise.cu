#include <algorithm>
#include <cassert>
#include <cmath>

#include "base/random.h"
#include "ops/cuda/dropout.cuh"
#include "ops/cuda/elementwise.h"
#include "ops/cuda/vector.cuh"

namespace lockstep::cuda {
namespace {

template <typename T>
struct DropoutAt {
  Dropout dropout;
  float factor;
  const T* x;
  T* y;
  template <int N>
  __device__ void at(std::int64_t i) const {
    Values<N> values = load<N>(x + i);
    const Values<N> factors = dropout_factors<N>(dropout, factor, i);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      values.v[k] *= factors.v[k];
    }
    store(values, y + i);
  }
};

constexpr float kGeluRoot = 0.7978845608028654F;  // sqrt(2 / pi)
constexpr float kGeluCube = 0.044715F;

// 0.5 (1 + tanh(u)) = 1 / (1 + exp(-2 u)), and the same for -u, which the subtraction from 1 would lose.
struct Sigmoid {
  float value;
  float rest;  // 1 - value
};
__device__ Sigmoid sigmoid(float x) {
  const float e = expf(-fabsf(x));  // of the larger side's complement: never overflows
  const float large = 1.0F / (1.0F + e);
  const float small = e * large;
  return x >= 0 ? Sigmoid{large, small} : Sigmoid{small, large};
}

template <typename T>
struct GeluForward {
  const T* x;
  T* y;
  template <int N>
  __device__ void at(std::int64_t i) const {
    Values<N> values = load<N>(x + i);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float v = values.v[k];
      values.v[k] = v * sigmoid(2 * kGeluRoot * (v + kGeluCube * v * v * v)).value;
    }
    store(values, y + i);
  }
};

template <typename T>
struct GeluBackward {
  const T* x;
  const T* dy;
  T* dx;
  template <int N>
  __device__ void at(std::int64_t i) const {
    const Values<N> values = load<N>(x + i);
    Values<N> gradient = load<N>(dy + i);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float v = values.v[k];
      const Sigmoid s = sigmoid(2 * kGeluRoot * (v + kGeluCube * v * v * v));
      const float slope = kGeluRoot * (1 + 3 * kGeluCube * v * v);
      const float tail = s.value * s.rest;  // 0 long before the slope overflows
      gradient.v[k] *= s.value + (tail > 0 ? 2 * v * tail * slope : 0.0F);
    }
    store(gradient, dx + i);
  }
};

template <typename T>
struct SwigluForward {
  const T* gate_up;
  T* y;
  std::int64_t features;
  template <int N>
  __device__ void at(std::int64_t i) const {
    const T* gate = gate_up + i / features * 2 * features + i % features;
    Values<N> values = load<N>(gate);
    const Values<N> up = load<N>(gate + features);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      values.v[k] = values.v[k] * sigmoid(values.v[k]).value * up.v[k];
    }
    store(values, y + i);
  }
};

template <typename T>
struct SwigluBackward {
  const T* gate_up;
  const T* dy;
  T* dgate_up;
  std::int64_t features;
  template <int N>
  __device__ void at(std::int64_t i) const {
    const std::int64_t place = i / features * 2 * features + i % features;
    const Values<N> gate = load<N>(gate_up + place);
    const Values<N> up = load<N>(gate_up + place + features);
    const Values<N> gradient = load<N>(dy + i);
    Values<N> dgate;
    Values<N> dup;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float g = gate.v[k];
      const Sigmoid s = sigmoid(g);
      dup.v[k] = gradient.v[k] * g * s.value;
      dgate.v[k] = gradient.v[k] * up.v[k] * s.value * (1 + g * s.rest);
    }
    store(dgate, dgate_up + place);
    store(dup, dgate_up + place + features);
  }
};

template <typename T>
struct AddNoise {
  Noise noise;
  T* x;
  template <int N>
  __device__ void at(std::int64_t i) const {
    Values<N> values = load<N>(x + i);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const std::int64_t place = i + k;
      const float u = uniform_float(philox(noise.key, static_cast<std::uint64_t>(place / 4))[place % 4]);
      values.v[k] += noise.bound * (2.0F * u - 1.0F);
    }
    store(values, x + i);
  }
};

template <typename T>
struct Scale {
  const T* x;
  float factor;
  T* y;
  template <int N>
  __device__ void at(std::int64_t i) const {
    Values<N> values = load<N>(x + i);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      values.v[k] *= factor;
    }
    store(values, y + i);
  }
};

template <typename T>
struct Add {
  const T* a;
  const T* b;
  T* out;
  template <int N>
  __device__ void at(std::int64_t i) const {
    Values<N> sum = load<N>(a + i);
    const Values<N> other = load<N>(b + i);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      sum.v[k] += other.v[k];
    }
    store(sum, out + i);
  }
};

template <typename From, typename To>
struct Convert {
  const From* from;
  To* to;
  template <int N>
  __device__ void at(std::int64_t i) const {
    store(load<N>(from + i), to + i);
  }
};

// m = beta1 m + (1 - beta1) g            v = beta2 v + (1 - beta2) g^2
// w = w (1 - lr decay) - lr (m / c1) / (sqrt(v / c2) + eps)
struct AdamWAt {
  float* master;
  float* exp_avg;
  float* exp_avg_sq;
  const float* gradient;
  float gradient_scale, beta1, rest1, beta2, rest2, keep, step, inverse_root, epsilon;
  template <int N>
  __device__ void at(std::int64_t i) const {
    Values<N> w = load<N>(master + i);
    Values<N> m = load<N>(exp_avg + i);
    Values<N> v = load<N>(exp_avg_sq + i);
    const Values<N> g = load<N>(gradient + i);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float scaled = g.v[k] * gradient_scale;
      m.v[k] = fmaf(m.v[k], beta1, scaled * rest1);
      v.v[k] = fmaf(v.v[k], beta2, scaled * scaled * rest2);
      const float denominator = fmaf(sqrtf(v.v[k]), inverse_root, epsilon);
      w.v[k] = fmaf(-step, m.v[k] / denominator, w.v[k] * keep);
    }
    store(w, master + i);
    store(m, exp_avg + i);
    store(v, exp_avg_sq + i);
  }
};

}  // namespace

void dropout(const Dropout& dropout, const Tensor& x, const Tensor& y, cudaStream_t stream) {
  with_working_type(x.dtype(), [&](auto type) {
    using T = decltype(type);
    sweep(x.count(), are_aligned({x.data(), y.data()}), stream, "dropout",
          DropoutAt<T>{dropout, 1.0F / (1.0F - dropout.probability), pointer<T>(x.data()), pointer<T>(y.data())});
  });
}

void gelu_forward(const Tensor& x, const Tensor& y, cudaStream_t stream) {
  with_working_type(x.dtype(), [&](auto type) {
    using T = decltype(type);
    sweep(x.count(), are_aligned({x.data(), y.data()}), stream, "gelu",
          GeluForward<T>{pointer<T>(x.data()), pointer<T>(y.data())});
  });
}

void gelu_backward(const Tensor& x, const Tensor& dy, const Tensor& dx, cudaStream_t stream) {
  with_working_type(x.dtype(), [&](auto type) {
    using T = decltype(type);
    sweep(x.count(), are_aligned({x.data(), dy.data(), dx.data()}), stream, "gelu's gradient",
          GeluBackward<T>{pointer<T>(x.data()), pointer<T>(dy.data()), pointer<T>(dx.data())});
  });
}

void swiglu_forward(const Tensor& gate_up, const Tensor& y, cudaStream_t stream) {
  with_working_type(y.dtype(), [&](auto type) {
    using T = decltype(type);
    sweep(y.count(), y.dim(-1) % kPack == 0 && are_aligned({gate_up.data(), y.data()}), stream, "swiglu",
          SwigluForward<T>{pointer<T>(gate_up.data()), pointer<T>(y.data()), y.dim(-1)});
  });
}

void swiglu_backward(const Tensor& gate_up, const Tensor& dy, const Tensor& dgate_up, cudaStream_t stream) {
  with_working_type(dy.dtype(), [&](auto type) {
    using T = decltype(type);
    sweep(
        dy.count(), dy.dim(-1) % kPack == 0 && are_aligned({gate_up.data(), dy.data(), dgate_up.data()}), stream,
        "swiglu's gradient",
        SwigluBackward<T>{pointer<T>(gate_up.data()), pointer<T>(dy.data()), pointer<T>(dgate_up.data()), dy.dim(-1)});
  });
}

void add(const Tensor& a, const Tensor& b, const Tensor& out, cudaStream_t stream) {
  with_working_type(a.dtype(), [&](auto type) {
    using T = decltype(type);
    sweep(a.count(), are_aligned({a.data(), b.data(), out.data()}), stream, "add",
          Add<T>{pointer<T>(a.data()), pointer<T>(b.data()), pointer<T>(out.data())});
  });
}

void scale(const Tensor& x, float factor, const Tensor& y, cudaStream_t stream) {
  with_working_type(x.dtype(), [&](auto type) {
    using T = decltype(type);
    sweep(x.count(), are_aligned({x.data(), y.data()}), stream, "scaling",
          Scale<T>{pointer<T>(x.data()), factor, pointer<T>(y.data())});
  });
}

void add_noise(const Noise& noise, const Tensor& x, cudaStream_t stream) {
  with_working_type(x.dtype(), [&](auto type) {
    using T = decltype(type);
    sweep(x.count(), are_aligned({x.data()}), stream, "noise", AddNoise<T>{noise, pointer<T>(x.data())});
  });
}

void add_f32(std::span<const float> a, std::span<const float> b, std::span<float> out, cudaStream_t stream) {
  sweep(static_cast<std::int64_t>(a.size()), are_aligned({a.data(), b.data(), out.data()}), stream, "adding gradients",
        Add<float>{a.data(), b.data(), out.data()});
}

void convert(const BufferView& from, const BufferView& to, cudaStream_t stream) {
  if (from.dtype == to.dtype) {
    check(cudaMemcpyAsync(to.data, from.data, from.size_bytes(), cudaMemcpyDeviceToDevice, stream), "copying");
    return;
  }
  const bool widens = to.dtype == DType::kF32;
  assert(widens || from.dtype == DType::kF32);
  const auto run = [&](const auto& convert) {
    sweep(static_cast<std::int64_t>(from.count), are_aligned({from.data, to.data}), stream, "conversion", convert);
  };
  with_narrow_type(widens ? from.dtype : to.dtype, [&](auto narrow) {
    using T = decltype(narrow);
    if (widens) {
      run(Convert<T, float>{pointer<T>(from.data), pointer<float>(to.data)});
    } else {
      run(Convert<float, T>{pointer<float>(from.data), pointer<T>(to.data)});
    }
  });
}

void adamw(const AdamW& args, cudaStream_t stream) {
  const AdamWAt at{args.master.data(),
                   args.exp_avg.data(),
                   args.exp_avg_sq.data(),
                   args.gradient.data(),
                   args.gradient_scale,
                   args.beta1,
                   1.0F - args.beta1,
                   args.beta2,
                   1.0F - args.beta2,
                   1.0F - args.learning_rate * args.weight_decay,
                   args.learning_rate / args.bias_correction1,
                   1.0F / std::sqrt(args.bias_correction2),
                   args.epsilon};
  sweep(static_cast<std::int64_t>(args.master.size()), are_aligned({at.master, at.exp_avg, at.exp_avg_sq, at.gradient}),
        stream, "adamw", at);
}

}  // namespace lockstep::cuda
