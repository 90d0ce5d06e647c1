#include "ops/cpu/elementwise.h"

#include <array>
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/elementwise.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.
#include <hwy/highway.h>

#include "base/half.h"
#include "ops/cpu/dispatch.h"
#include "ops/cpu/nf4_pairs.h"
#include "ops/cpu/random-inl.h"
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lockstep::cpu::HWY_NAMESPACE {
namespace {

template <typename Function, typename Out, typename... In>
void map_chunk(const Function& function, std::size_t count, Out* out, const In*... in) {
  sweep(count,
        [&](std::size_t i, auto extent) LOCKSTEP_LAMBDA { store(function(load(in + i, extent)...), out + i, extent); });
}

// out[i] = function(in[i]...)
template <typename Function, typename Out, typename... In>
void map(ThreadPool& pool, const Function& function, std::size_t count, Out* out, const In*... in) {
  const Chunks chunks = chunks_of_elements(count);
  pool.parallel_for(chunks.count(), [&](std::size_t chunk) {
    const std::size_t begin = chunks.begin(chunk);
    map_chunk(function, chunks.size(chunk), out + begin, (in + begin)...);
  });
}

template <typename Function, typename... Tensors>
void map_tensors(ThreadPool& pool, const Function& function, const Tensor& out, const Tensors&... in) {
  with_working_type(out.dtype(), [&](auto type) {
    using T = decltype(type);
    map(pool, function, static_cast<std::size_t>(out.count()), out.data<T>(),
        static_cast<const T*>(in.template data<T>())...);
  });
}

struct Copy {
  HWY_INLINE Float operator()(Float x) const { return x; }
};

struct Addition {
  HWY_INLINE Float operator()(Float a, Float b) const { return hn::Add(a, b); }
};

// With u = sqrt(2 / pi) (x + 0.044715 x^3): y = x s and s = sigmoid(2 u), because (1 + tanh u) / 2 is sigmoid(2 u).
// Unlike 1 + tanh u it keeps its relative accuracy where x is far below 0.
constexpr float kTwoSqrtTwoOverPi = 1.5957691216F;
constexpr float kCubic = 0.044715F;

struct Gelu {
  HWY_INLINE Float operator()(Float x) const {
    const Float slope = hn::MulAdd(hn::Mul(x, x), set(kTwoSqrtTwoOverPi * kCubic), set(kTwoSqrtTwoOverPi));
    return hn::Mul(x, sigmoid(hn::Mul(x, slope)));
  }
};

// dy/dx = s + x s (1 - s) 2 u'
struct GeluGradient {
  HWY_INLINE Float operator()(Float x, Float dy) const {
    // The derivative is exactly 0 or 1 beyond 20, where x^3 could overflow.
    const Float bound = set(20.0F);
    x = hn::IfThenElse(hn::Gt(hn::Abs(x), bound), hn::CopySign(bound, x), x);
    const Float square = hn::Mul(x, x);
    const Float slope = hn::MulAdd(square, set(kTwoSqrtTwoOverPi * kCubic), set(kTwoSqrtTwoOverPi));
    const Float derivative = hn::MulAdd(square, set(3 * kTwoSqrtTwoOverPi * kCubic), set(kTwoSqrtTwoOverPi));
    const Float s = sigmoid(hn::Mul(x, slope));
    const Float rest = hn::Mul(hn::Mul(x, s), hn::Sub(set(1.0F), s));
    return hn::Mul(dy, hn::MulAdd(rest, derivative, s));
  }
};

template <typename T>
void swiglu_forward_row(std::size_t width, const T* gate_up, T* y) {
  sweep(width, [&](std::size_t i, auto extent) LOCKSTEP_LAMBDA {
    const Float gate = load(gate_up + i, extent);
    const Float up = load(gate_up + width + i, extent);
    store(hn::Mul(hn::Mul(gate, sigmoid(gate)), up), y + i, extent);
  });
}

// With s = sigmoid(gate): dgate = dy up s (1 + gate (1 - s)), dup = dy gate s.
template <typename T>
void swiglu_backward_row(std::size_t width, const T* gate_up, const T* dy, T* dgate_up) {
  sweep(width, [&](std::size_t i, auto extent) LOCKSTEP_LAMBDA {
    const Float gate = load(gate_up + i, extent);
    const Float up = load(gate_up + width + i, extent);
    const Float gradient = load(dy + i, extent);
    const Float one = set(1.0F);
    const Float s = sigmoid(gate);
    const Float slope = hn::Mul(s, hn::MulAdd(gate, hn::Sub(one, s), one));
    store(hn::Mul(hn::Mul(gradient, up), slope), dgate_up + i, extent);
    store(hn::Mul(gradient, hn::Mul(gate, s)), dgate_up + width + i, extent);
  });
}

template <typename T>
void dropout_chunk(const Dropout& dropout, std::size_t begin, std::size_t count, const T* x, T* y) {
  DropoutFactors factors(dropout);
  for (std::size_t done = 0; done < count; done += kFactorPiece) {
    const std::size_t piece = std::min(kFactorPiece, count - done);
    const float* factor = factors.of(begin + done, piece);
    sweep(piece, [&](std::size_t i, auto extent) LOCKSTEP_LAMBDA {
      store(hn::Mul(load(x + done + i, extent), load(factor + i, extent)), y + done + i, extent);
    });
  }
}

void dropout_kernel(const Dropout& dropout, const Tensor& x, const Tensor& y, ThreadPool& pool) {
  with_working_type(x.dtype(), [&](auto type) {
    using T = decltype(type);
    const Chunks chunks = chunks_of_elements(static_cast<std::size_t>(x.count()));
    pool.parallel_for(chunks.count(), [&](std::size_t chunk) {
      const std::size_t begin = chunks.begin(chunk);
      dropout_chunk(dropout, begin, chunks.size(chunk), x.data<T>() + begin, y.data<T>() + begin);
    });
  });
}

void gelu_forward_kernel(const Tensor& x, const Tensor& y, ThreadPool& pool) { map_tensors(pool, Gelu(), y, x); }

void gelu_backward_kernel(const Tensor& x, const Tensor& dy, const Tensor& dx, ThreadPool& pool) {
  map_tensors(pool, GeluGradient(), dx, x, dy);
}

void swiglu_forward_kernel(const Tensor& gate_up, const Tensor& y, ThreadPool& pool) {
  const auto width = static_cast<std::size_t>(y.dim(-1));
  with_working_type(y.dtype(), [&](auto type) {
    using T = decltype(type);
    const Chunks chunks = chunks_of_rows(y.rows(), y.dim(-1));
    pool.parallel_for(chunks.count(), [&](std::size_t chunk) {
      const std::size_t begin = chunks.begin(chunk);
      for (std::size_t row = begin; row < begin + chunks.size(chunk); ++row) {
        swiglu_forward_row(width, gate_up.data<T>() + row * 2 * width, y.data<T>() + row * width);
      }
    });
  });
}

void swiglu_backward_kernel(const Tensor& gate_up, const Tensor& dy, const Tensor& dgate_up, ThreadPool& pool) {
  const auto width = static_cast<std::size_t>(dy.dim(-1));
  with_working_type(dy.dtype(), [&](auto type) {
    using T = decltype(type);
    const Chunks chunks = chunks_of_rows(dy.rows(), dy.dim(-1));
    pool.parallel_for(chunks.count(), [&](std::size_t chunk) {
      const std::size_t begin = chunks.begin(chunk);
      for (std::size_t row = begin; row < begin + chunks.size(chunk); ++row) {
        swiglu_backward_row(width, gate_up.data<T>() + row * 2 * width, dy.data<T>() + row * width,
                            dgate_up.data<T>() + row * 2 * width);
      }
    });
  });
}

void add_kernel(const Tensor& a, const Tensor& b, const Tensor& out, ThreadPool& pool) {
  map_tensors(pool, Addition(), out, a, b);
}

struct Scaling {
  float factor;
  HWY_INLINE Float operator()(Float x) const { return hn::Mul(x, set(factor)); }
};

void scale_kernel(const Tensor& x, float factor, const Tensor& y, ThreadPool& pool) {
  map_tensors(pool, Scaling{factor}, y, x);
}

// out[i] = scale * code[i]
template <typename T>
void unpack_q8(const std::int8_t* codes, float scale, std::size_t count, T* out) {
  const hn::Rebind<std::int8_t, FloatTag> bytes;
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const auto wide = hn::PromoteTo(IntTag(), hn::LoadU(bytes, codes + i));
    store(hn::Mul(hn::ConvertTo(kFloat, wide), set(scale)), out + i, Whole());
  }
  for (; i < count; ++i) {
    out[i] = static_cast<T>(static_cast<float>(codes[i]) * scale);
  }
}

template <typename T>
void unpack_nf4(const std::uint8_t* codes, float scale, std::size_t count, T* out) {
  std::array<float, values_in_block(Packing::kNf4)> levels;
  for (std::size_t i = 0; i < count; i += 2) {
    const Nf4Pair& pair = kNf4Pairs[codes[i / 2]];
    levels[i] = pair.low;
    levels[i + 1] = pair.high;
  }
  map_chunk(Scaling{scale}, count, out, levels.data());
}

template <typename T>
void unpack_of(const PackedWeight& weight, std::size_t count, T* out, ThreadPool& pool) {
  const std::size_t block = values_in_block(weight.packing);
  const std::byte* const codes = weight.data + codes_offset(weight.packing, count);
  const Chunks chunks{blocks_of(weight.packing, count), kChunkElements / block};
  pool.parallel_for(chunks.count(), [&](std::size_t chunk) {
    for (std::size_t b = chunks.begin(chunk); b < chunks.begin(chunk) + chunks.size(chunk); ++b) {
      const std::size_t size = std::min(block, count - b * block);
      if (weight.packing == Packing::kQ8) {
        std::uint16_t half = 0;
        std::memcpy(&half, weight.data + b * sizeof(half), sizeof(half));
        unpack_q8(reinterpret_cast<const std::int8_t*>(codes + b * block), from_f16(half), size, out + b * block);
      } else {
        float scale = 0;
        std::memcpy(&scale, weight.data + b * sizeof(scale), sizeof(scale));
        unpack_nf4(reinterpret_cast<const std::uint8_t*>(codes + b * block / 2), scale, size, out + b * block);
      }
    }
  });
}

void unpack_kernel(const PackedWeight& weight, const Tensor& out, ThreadPool& pool) {
  with_working_type(out.dtype(), [&](auto type) {
    using T = decltype(type);
    unpack_of(weight, static_cast<std::size_t>(out.count()), out.data<T>(), pool);
  });
}

void add_f32_kernel(std::span<const float> a, std::span<const float> b, std::span<float> out, ThreadPool& pool) {
  map(pool, Addition(), out.size(), out.data(), a.data(), b.data());
}

void widen_kernel(const BufferView& from, float* to, ThreadPool& pool) {
  with_narrow_type(from.dtype, [&](auto type) { map(pool, Copy(), from.count, to, from.as<decltype(type)>().data()); });
}

void narrow_kernel(const float* from, const BufferView& to, ThreadPool& pool) {
  with_narrow_type(to.dtype, [&](auto type) { map(pool, Copy(), to.count, to.as<decltype(type)>().data(), from); });
}

template <typename Out, typename In>
void convert_rows_of(const Matrix& from, const Matrix& to, std::int64_t first, std::int64_t count) {
  for (std::int64_t row = first; row < first + count; ++row) {
    map_chunk(Copy(), static_cast<std::size_t>(from.columns), static_cast<Out*>(to.data) + row * to.stride,
              static_cast<const In*>(from.data) + row * from.stride);
  }
}

void convert_rows_kernel(const Matrix& from, const Matrix& to, std::int64_t first, std::int64_t count) {
  const bool widens = to.dtype == DType::kF32;
  with_narrow_type(widens ? from.dtype : to.dtype, [&](auto type) {
    using T = decltype(type);
    widens ? convert_rows_of<float, T>(from, to, first, count) : convert_rows_of<T, float>(from, to, first, count);
  });
}

}  // namespace
}  // namespace lockstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lockstep::cpu {

HWY_EXPORT(dropout_kernel);
HWY_EXPORT(gelu_forward_kernel);
HWY_EXPORT(gelu_backward_kernel);
HWY_EXPORT(swiglu_forward_kernel);
HWY_EXPORT(swiglu_backward_kernel);
HWY_EXPORT(add_kernel);
HWY_EXPORT(scale_kernel);
HWY_EXPORT(unpack_kernel);
HWY_EXPORT(add_f32_kernel);
HWY_EXPORT(widen_kernel);
HWY_EXPORT(narrow_kernel);
HWY_EXPORT(convert_rows_kernel);

void dropout(const Dropout& dropout, const Tensor& x, const Tensor& y, ThreadPool& pool) {
  HWY_DYNAMIC_DISPATCH(dropout_kernel)(dropout, x, y, pool);
}

void gelu_forward(const Tensor& x, const Tensor& y, ThreadPool& pool) {
  HWY_DYNAMIC_DISPATCH(gelu_forward_kernel)(x, y, pool);
}

void gelu_backward(const Tensor& x, const Tensor& dy, const Tensor& dx, ThreadPool& pool) {
  HWY_DYNAMIC_DISPATCH(gelu_backward_kernel)(x, dy, dx, pool);
}

void swiglu_forward(const Tensor& gate_up, const Tensor& y, ThreadPool& pool) {
  HWY_DYNAMIC_DISPATCH(swiglu_forward_kernel)(gate_up, y, pool);
}

void swiglu_backward(const Tensor& gate_up, const Tensor& dy, const Tensor& dgate_up, ThreadPool& pool) {
  HWY_DYNAMIC_DISPATCH(swiglu_backward_kernel)(gate_up, dy, dgate_up, pool);
}

void add(const Tensor& a, const Tensor& b, const Tensor& out, ThreadPool& pool) {
  HWY_DYNAMIC_DISPATCH(add_kernel)(a, b, out, pool);
}

void scale(const Tensor& x, float factor, const Tensor& y, ThreadPool& pool) {
  HWY_DYNAMIC_DISPATCH(scale_kernel)(x, factor, y, pool);
}

// Of embeddings alone, which are few beside what the layers compute: no vectors.
void add_noise(const Noise& noise, const Tensor& x, ThreadPool& pool) {
  const auto count = static_cast<std::size_t>(x.count());
  const Chunks chunks = chunks_of_elements(count);
  with_working_type(x.dtype(), [&](auto type) {
    using T = decltype(type);
    T* const values = x.data<T>();
    pool.parallel_for(chunks.count(), [&](std::size_t chunk) {
      std::array<std::uint32_t, 4> words = {};
      const std::size_t begin = chunks.begin(chunk);
      for (std::size_t i = begin; i < begin + chunks.size(chunk); ++i) {
        if (i % 4 == 0 || i == begin) {
          words = philox(noise.key, i / 4);
        }
        const float added = noise.bound * (2.0F * uniform_float(words[i % 4]) - 1.0F);
        values[i] = static_cast<T>(static_cast<float>(values[i]) + added);
      }
    });
  });
}

void unpack(const PackedWeight& weight, const Tensor& out, ThreadPool& pool) {
  HWY_DYNAMIC_DISPATCH(unpack_kernel)(weight, out, pool);
}

void add_f32(std::span<const float> a, std::span<const float> b, std::span<float> out, ThreadPool& pool) {
  assert(a.size() == out.size() && b.size() == out.size());
  HWY_DYNAMIC_DISPATCH(add_f32_kernel)(a, b, out, pool);
}

namespace {

// Calls body(begin, size) on pieces of [0, size_bytes).
template <typename Body>
void each_piece(std::size_t size_bytes, ThreadPool& pool, const Body& body) {
  const Chunks chunks{size_bytes, kChunkElements * sizeof(float)};
  pool.parallel_for(chunks.count(), [&](std::size_t chunk) { body(chunks.begin(chunk), chunks.size(chunk)); });
}

}  // namespace

void convert(const BufferView& from, const BufferView& to, ThreadPool& pool) {
  assert(from.count == to.count);
  assert(from.dtype == to.dtype || from.dtype == DType::kF32 || to.dtype == DType::kF32);
  if (from.dtype == to.dtype) {
    each_piece(from.size_bytes(), pool, [&](std::size_t begin, std::size_t size) {
      std::memcpy(static_cast<std::byte*>(to.data) + begin, static_cast<const std::byte*>(from.data) + begin, size);
    });
  } else if (to.dtype == DType::kF32) {
    HWY_DYNAMIC_DISPATCH(widen_kernel)(from, to.as<float>().data(), pool);
  } else {
    HWY_DYNAMIC_DISPATCH(narrow_kernel)(from.as<float>().data(), to, pool);
  }
}

void convert_rows(const Matrix& from, const Matrix& to, std::int64_t first, std::int64_t count) {
  assert(from.rows == to.rows && from.columns == to.columns && from.dtype != to.dtype);
  HWY_DYNAMIC_DISPATCH(convert_rows_kernel)(from, to, first, count);
}

void fill_zero(const Tensor& x, ThreadPool& pool) {
  each_piece(x.size_bytes(), pool, [&](std::size_t begin, std::size_t size) {
    std::memset(static_cast<std::byte*>(x.data()) + begin, 0, size);
  });
}

}  // namespace lockstep::cpu
#endif
