// The emulator's twin of ops/cuda/mma.cuh, which says what each of these does.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "tests/cuda_emulator/block.h"
#include "tests/cuda_emulator/device.h"

namespace lockstep::cuda {

namespace emulated {

// Both of a register.
template <typename T>
std::array<float, 2> elements_of(unsigned pair);
template <>
inline std::array<float, 2> elements_of<__nv_bfloat16>(unsigned pair) {
  return {std::bit_cast<float>(pair << 16U), std::bit_cast<float>(pair & 0xFFFF0000U)};
}
// __half2float() is slow here.
inline float widened(unsigned bits) {
  const unsigned magnitude = (bits & 0x7FFFU) << 13U;
  const float value = magnitude < 0x7C00U << 13U ? std::bit_cast<float>(magnitude) * 0x1p112F
                                                 : std::bit_cast<float>(magnitude | 0x7F800000U);
  return std::bit_cast<float>(std::bit_cast<unsigned>(value) | (bits & 0x8000U) << 16U);
}
template <>
inline std::array<float, 2> elements_of<__half>(unsigned pair) {
  return {widened(pair), widened(pair >> 16U)};
}
inline std::size_t lane() { return cuda_emulator::thread_index().x % 32U; }

inline void check_alignment(const void* address, std::size_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(address) % bytes != 0) {
    cuda_emulator::give_up("an address is not aligned as the instruction needs it");
  }
}

// What start_copy() was asked for by a thread. A GPU brings the bytes at any time up to when the thread waits for them:
// here at the last moment, or at the first where LOCKSTEP_EMULATOR_ORDER is set, and on Turing always.
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

namespace emulated {

// What the lanes bring to a product of A[16, kDepth] and B[kDepth, 8].
template <std::size_t kDepth>
struct Operands {
  unsigned a[kDepth / 4];
  unsigned b[kDepth / 8];
};

template <typename T, std::size_t kDepth>
void add_product(float (&d)[4], const Operands<kDepth>& own) {
  const auto* lanes = static_cast<const Operands<kDepth>*>(cuda_emulator::gather_from_warp(&own, sizeof(own)));
  const std::size_t group = lane() / 4;
  const std::size_t place = lane() % 4;
  for (std::size_t i = 0; i < 4; ++i) {
    const std::size_t is_lower_row = i / 2;  // row group + 8
    const Operands<kDepth>* row = lanes + 4 * group;
    const Operands<kDepth>* column = lanes + 4 * (2 * place + i % 2);
    for (std::size_t k = 0; k < kDepth; k += 2) {  // registers hold two of them: of lane k / 2 % 4
      const unsigned left = row[k / 2 % 4].a[2 * (k / 8) + is_lower_row];
      const unsigned right = column[k / 2 % 4].b[k / 8];
      d[i] += elements_of<T>(left)[0] * elements_of<T>(right)[0];
      d[i] += elements_of<T>(left)[1] * elements_of<T>(right)[1];
    }
  }
}

}  // namespace emulated

template <typename T>
void add_product(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  if (cuda_emulator::capability() >= 80) {
    emulated::add_product<T, 16>(d, {{a[0], a[1], a[2], a[3]}, {b0, b1}});
    return;
  }
  if (!std::is_same_v<T, __half>) {
    cuda_emulator::give_up("this card has no products of bf16");
  }
  emulated::add_product<T, 8>(d, {{a[0], a[1]}, {b0}});
  emulated::add_product<T, 8>(d, {{a[2], a[3]}, {b1}});
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
  if (cuda_emulator::is_reordered() || cuda_emulator::capability() < 80) {
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
