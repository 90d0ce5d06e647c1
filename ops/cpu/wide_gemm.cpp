#include "ops/cpu/wide_gemm.h"

#include "base/buffer.h"
#include "ops/cpu/dispatch.h"
#include "ops/cpu/elementwise.h"

namespace lockstep::cpu {
namespace {

void convert_matrix(const Matrix& from, const Matrix& to, ThreadPool* pool) {
  const Chunks chunks = chunks_of_rows(from.rows, from.columns);
  const auto convert_chunk = [&](std::size_t chunk) {
    convert_rows(from, to, static_cast<std::int64_t>(chunks.begin(chunk)),
                 static_cast<std::int64_t>(chunks.size(chunk)));
  };
  if (pool != nullptr) {
    pool->parallel_for(chunks.count(), convert_chunk);
  } else {
    for (std::size_t chunk = 0; chunk < chunks.count(); ++chunk) {
      convert_chunk(chunk);
    }
  }
}

std::size_t elements_of(const Matrix& matrix) { return static_cast<std::size_t>(matrix.rows * matrix.columns); }

// `matrix` as f32 in the memory at `next`, which moves past it (in whole cache lines).
Matrix place(const Matrix& matrix, float*& next) {
  float* data = next;
  next += (elements_of(matrix) + 15) / 16 * 16;
  return {data, DType::kF32, matrix.rows, matrix.columns, matrix.columns, matrix.transposed};
}

}  // namespace

void multiply_widened(const Gemm& gemm, ThreadPool* pool, const std::function<void(const Gemm& wide)>& product) {
  const bool narrow_d = gemm.d.dtype != DType::kF32;
  const Matrix bias{const_cast<void*>(gemm.bias), gemm.a.dtype, gemm.bias == nullptr ? 0 : 1, gemm.d.columns,
                    gemm.d.columns};
  constexpr std::size_t kPadding = 16;
  const std::size_t floats = elements_of(gemm.a) + elements_of(gemm.b) + elements_of(bias) +
                             (narrow_d ? elements_of(gemm.d) : 0) + 4 * kPadding;
  thread_local Buffer memory;
  if (memory.size_bytes() < floats * sizeof(float)) {
    memory = Buffer();
    memory = Buffer::allocate(floats * sizeof(float));
  }
  auto* next = reinterpret_cast<float*>(memory.data());

  Gemm wide = gemm;
  wide.a = place(gemm.a, next);
  convert_matrix(gemm.a, wide.a, pool);
  wide.b = place(gemm.b, next);
  convert_matrix(gemm.b, wide.b, pool);
  if (gemm.bias != nullptr) {
    const Matrix wide_bias = place(bias, next);
    convert_matrix(bias, wide_bias, nullptr);
    wide.bias = wide_bias.data;
  }
  if (narrow_d) {
    wide.d = place(gemm.d, next);
    if (gemm.accumulate) {
      convert_matrix(gemm.d, wide.d, pool);
    }
  }
  product(wide);
  if (narrow_d) {
    convert_matrix(wide.d, gemm.d, pool);
  }
}

}  // namespace lockstep::cpu
