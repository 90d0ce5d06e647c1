#include "trainer/gemm_rate.h"

#include <algorithm>

#include "base/buffer.h"
#include "trainer/stopwatch.h"

namespace lockstep {

double measure_gemm_rate(Backend& backend, DType dtype) {
  constexpr std::int64_t kSize = 1024;
  constexpr int kRepeats = 5;
  const auto elements = static_cast<std::size_t>(kSize * kSize);
  const Buffer a = Buffer::allocate(elements * size_of(dtype));
  const Buffer b = Buffer::allocate(elements * size_of(dtype));
  const Buffer d = Buffer::allocate(elements * size_of(dtype));
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
