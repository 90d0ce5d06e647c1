#include "trainer/gemm_rate.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/buffer.h"
#include "base/random.h"
#include "trainer/stopwatch.h"

namespace lockstep {

Buffer filled_memory(Backend& backend, std::size_t size_bytes, std::byte value) {
  const Buffer host = Buffer::allocate(size_bytes);
  std::memset(host.data(), static_cast<int>(value), size_bytes);
  Buffer memory = backend.allocate(size_bytes);
  backend.copy({host.data(), size_bytes, DType::kU8, {}}, {memory.data(), size_bytes, DType::kU8, backend.device()});
  return memory;
}

Buffer random_memory(Backend& backend, std::size_t count, DType dtype) {
  constexpr std::size_t kPiece = std::size_t{1} << 20;
  std::vector<float> values(std::min(count, kPiece));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = 2 * uniform_float(static_cast<std::uint32_t>(mix64(i) >> 32)) - 1;
  }
  const Buffer uploaded = backend.allocate(values.size() * sizeof(float));
  const BufferView piece{uploaded.data(), values.size(), DType::kF32, backend.device()};
  backend.copy(view_of(std::span(values)), piece);
  Buffer memory = backend.allocate(count * size_of(dtype));
  const BufferView all{memory.data(), count, dtype, backend.device()};
  for (std::size_t begin = 0; begin < count; begin += piece.count) {
    const std::size_t n = std::min(piece.count, count - begin);
    backend.convert(piece.slice(0, n), all.slice(begin, n));
  }
  backend.synchronize();
  return memory;
}

double measure_gemm_rate(Backend& backend, DType dtype) {
  // On a CPU, rows that do not lie a power of two apart, which would put them into the same cache sets. A GPU needs
  // enough work for all of its multiprocessors.
  const bool on_gpu = backend.device().kind == DeviceKind::kCuda;
  const std::int64_t size = on_gpu ? 8192 : 960;
  constexpr int kRepeats = 5;
  const std::size_t matrix_bytes = static_cast<std::size_t>(size * size) * size_of(dtype);
  const auto threads = on_gpu ? 1 : static_cast<std::size_t>(backend.pool().threads());
  const Buffer memory = random_memory(backend, (2 + threads) * static_cast<std::size_t>(size * size), dtype);
  const auto matrix = [&](std::size_t index) {
    return Matrix{memory.data() + index * matrix_bytes, dtype, size, size, size, false};
  };
  std::vector<Gemm> products(threads);
  for (std::size_t t = 0; t < threads; ++t) {
    products[t] = {.a = matrix(0), .b = matrix(1), .d = matrix(2 + t)};
  }
  double best_ms = 1e30;
  for (int i = 0; i < kRepeats; ++i) {
    const double begin_ms = now_ms();
    backend.gemm_each(products);
    backend.synchronize();
    best_ms = std::min(best_ms, now_ms() - begin_ms);
  }
  return 2.0 * static_cast<double>(size * size * size) * static_cast<double>(threads) / (best_ms * 1e-3);
}

}  // namespace lockstep
