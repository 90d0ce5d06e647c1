#include "trainer/gemm_rate.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/buffer.h"
#include "trainer/stopwatch.h"

namespace lockstep {

double measure_gemm_rate(Backend& backend, DType dtype) {
  // Rows that do not lie a power of two apart, which would put them into the same cache sets.
  constexpr std::int64_t kSize = 960;
  constexpr int kRepeats = 5;
  const std::size_t matrix_bytes = static_cast<std::size_t>(kSize * kSize) * size_of(dtype);
  const auto threads = static_cast<std::size_t>(backend.pool().threads());
  const Buffer memory = Buffer::allocate((2 + threads) * matrix_bytes);
  std::memset(memory.data(), 0x3f, memory.size_bytes());  // 0.75 or so, in memory that is really there
  const auto matrix = [&](std::size_t index) {
    return Matrix{memory.data() + index * matrix_bytes, dtype, kSize, kSize, kSize, false};
  };
  std::vector<Gemm> products(threads);
  for (std::size_t t = 0; t < threads; ++t) {
    products[t] = {.a = matrix(0), .b = matrix(1), .d = matrix(2 + t)};
  }
  double best_ms = 1e30;
  for (int i = 0; i < kRepeats; ++i) {
    const double begin_ms = now_ms();
    backend.gemm_each(products);
    best_ms = std::min(best_ms, now_ms() - begin_ms);
  }
  return 2.0 * static_cast<double>(kSize * kSize * kSize) * static_cast<double>(threads) / (best_ms * 1e-3);
}

}  // namespace lockstep
