// The emulator's twin of ops/cuda/mma.cuh, which says what each of these does.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "tests/cuda_emulator/block.h"

namespace lockstep::cuda {

namespace emulated {

inline float lower_half(unsigned pair) { return std::bit_cast<float>(pair << 16U); }
inline float upper_half(unsigned pair) { return std::bit_cast<float>(pair & 0xFFFF0000U); }
inline std::size_t lane() { return cuda_emulator::thread_index().x % 32U; }

inline void check_alignment(const void* address, std::size_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(address) % bytes != 0) {
    cuda_emulator::give_up("an address is not aligned as the instruction needs it");
  }
}

// What start_copy() was asked for by a thread. A GPU brings the bytes at any time up to when the thread waits for them:
// here at the last moment, or at the first where LOCKSTEP_EMULATOR_ORDER is set.
struct Copy {
  void* to;
  const void* from;  // null: zeros
  std::size_t bytes;

  void arrive() const {
    if (from == nullptr) {
      std::memset(to, 0, bytes);
    } else {
      std::memcpy(to, from, bytes);
    }
  }
};
inline std::vector<Copy>& copies_of_thread() {
  static thread_local std::array<std::vector<Copy>, 1024> copies;
  return copies.at(cuda_emulator::thread_index().x);
}

// The rows that the lanes of the warp point at.
inline const std::byte* const* rows_of_warp(const void* own) {
  check_alignment(own, 16);
  return static_cast<const std::byte* const*>(cuda_emulator::gather_from_warp(&own, sizeof(own)));
}

}  // namespace emulated

inline void add_product(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  struct Operands {
    unsigned a[4];
    unsigned b[2];
  };
  const Operands own{{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const auto* lanes = static_cast<const Operands*>(cuda_emulator::gather_from_warp(&own, sizeof(own)));
  const std::size_t group = emulated::lane() / 4;
  const std::size_t place = emulated::lane() % 4;
  for (std::size_t i = 0; i < 4; ++i) {
    const std::size_t is_lower_row = i / 2;  // row group + 8
    const Operands* row = lanes + 4 * group;
    const Operands* column = lanes + 4 * (2 * place + i % 2);
    for (std::size_t k = 0; k < 16; k += 2) {  // registers hold two of them: of lane k / 2 % 4
      const unsigned left = row[k / 2 % 4].a[2 * (k / 8) + is_lower_row];
      const unsigned right = column[k / 2 % 4].b[k / 8];
      d[i] += emulated::lower_half(left) * emulated::lower_half(right);
      d[i] += emulated::upper_half(left) * emulated::upper_half(right);
    }
  }
}

inline void load_matrices(unsigned (&matrices)[4], const void* row) {
  const std::byte* const* rows = emulated::rows_of_warp(row);
  const std::size_t lane = emulated::lane();
  for (std::size_t i = 0; i < 4; ++i) {
    std::memcpy(&matrices[i], rows[8 * i + lane / 4] + lane % 4 * sizeof(unsigned), sizeof(unsigned));
  }
}

inline void load_transposed_matrices(unsigned (&matrices)[4], const void* row) {
  const std::byte* const* rows = emulated::rows_of_warp(row);
  const std::size_t lane = emulated::lane();
  for (std::size_t i = 0; i < 4; ++i) {
    std::uint16_t elements[2];
    for (std::size_t e = 0; e < 2; ++e) {
      std::memcpy(&elements[e], rows[8 * i + 2 * (lane % 4) + e] + lane / 4 * sizeof(elements[e]), sizeof(elements[e]));
    }
    matrices[i] = static_cast<unsigned>(elements[0]) | static_cast<unsigned>(elements[1]) << 16U;
  }
}

template <int kBytes>
void start_copy(void* to, const void* from, bool is_there) {
  static_assert(kBytes == 4 || kBytes == 16);
  emulated::check_alignment(to, kBytes);
  emulated::check_alignment(from, kBytes);
  const emulated::Copy copy{to, is_there ? from : nullptr, kBytes};
  if (cuda_emulator::is_reordered()) {
    copy.arrive();
  } else {
    emulated::copies_of_thread().push_back(copy);
  }
}

inline void wait_for_copies() {
  std::vector<emulated::Copy>& copies = emulated::copies_of_thread();
  for (const emulated::Copy& copy : copies) {
    copy.arrive();
  }
  copies.clear();
}

inline float power_of_two(float x) { return std::exp2(x); }

}  // namespace lockstep::cuda
