#include "trainer/gemm_rate.h"

#include <algorithm>
#include <cstring>

#include "base/buffer.h"
#include "trainer/stopwatch.h"

namespace lockstep {

double measure_gemm_rate(Backend& backend, DType dtype) {
  // Rows that do not lie a power of two apart, which would put them into the same cache sets.
  constexpr std::int64_t kSize = 960;
  constexpr int kRepeats = 5;
  const auto elements = static_cast<std::size_t>(kSize * kSize);
  const Buffer a = Buffer::allocate(elements * size_of(dtype));
  const Buffer b = Buffer::allocate(elements * size_of(dtype));
  const Buffer d = Buffer::allocate(elements * size_of(dtype));
  for (const Buffer* buffer : {&a, &b, &d}) {
    std::memset(buffer->data(), 0x3f, elements * size_of(dtype));  // 0.75 or so, in memory that is really there
  }
  const auto matrix = [&](const Buffer& buffer) { return Matrix{buffer.data(), dtype, kSize, kSize, kSize, false}; };
  double best_ms = 1e30;
  for (int i = 0; i < kRepeats; ++i) {
    const double begin_ms = now_ms();
    backend.gemm({.a = matrix(a), .b = matrix(b), .d = matrix(d)});
    best_ms = std::min(best_ms, now_ms() - begin_ms);
  }
  return 2.0 * static_cast<double>(kSize * kSize * kSize) / (best_ms * 1e-3);
}

}  // namespace lockstep
