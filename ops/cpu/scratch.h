// Working memory of kernels, kept by each thread and grown to the most that was asked for, so that a steady step
// allocates nothing.
#pragma once

#include <cstddef>
#include <span>

namespace lockstep::cpu {

// `size_bytes` uninitialised bytes, aligned to 64, of the calling thread; valid until its next call.
[[nodiscard]] std::byte* scratch_bytes(std::size_t size_bytes);

template <typename T>
[[nodiscard]] std::span<T> scratch(std::size_t count) {
  return {reinterpret_cast<T*>(scratch_bytes(count * sizeof(T))), count};
}

}  // namespace lockstep::cpu
