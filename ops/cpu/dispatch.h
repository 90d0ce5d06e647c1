// From a working dtype, a value, to the type that a kernel is compiled for.
#pragma once

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstdint>

#include "base/dtype.h"
#include "base/half.h"

namespace lockstep::cpu {

// Calls body(T()) with T = BFloat16 or Float16.
template <typename Body>
void with_narrow_type(DType dtype, const Body& body) {
  assert(dtype == DType::kBF16 || dtype == DType::kF16);
  if (dtype == DType::kBF16) {
    body(BFloat16());
  } else {
    body(Float16());
  }
}

// Calls body(T()) with T = float, BFloat16 or Float16.
template <typename Body>
void with_working_type(DType dtype, const Body& body) {
  if (dtype == DType::kF32) {
    body(float());
  } else {
    with_narrow_type(dtype, body);
  }
}

// How a loop over items is cut into chunks. A function of sizes alone, never of the number of threads.
struct Chunks {
  std::size_t items = 0;
  std::size_t chunk_items = 1;

  [[nodiscard]] std::size_t count() const { return (items + chunk_items - 1) / chunk_items; }
  [[nodiscard]] std::size_t begin(std::size_t chunk) const { return chunk * chunk_items; }
  [[nodiscard]] std::size_t size(std::size_t chunk) const { return std::min(chunk_items, items - begin(chunk)); }
};

// Elements of one chunk of a memory-bound loop: enough to hide what starting a chunk costs, few enough to share out.
inline constexpr std::size_t kChunkElements = 16384;

[[nodiscard]] inline Chunks chunks_of_elements(std::size_t count) { return {count, kChunkElements}; }

[[nodiscard]] inline Chunks chunks_of_rows(std::int64_t rows, std::int64_t columns) {
  const auto width = static_cast<std::size_t>(std::max<std::int64_t>(columns, 1));
  return {static_cast<std::size_t>(rows), std::max<std::size_t>(kChunkElements / width, 1)};
}

}  // namespace lockstep::cpu
