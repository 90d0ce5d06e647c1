// The cards that device code is compiled for, as constants within kernels. What the host calls must not depend on the
// one that is being compiled for: which kernels there are is the same for all.
#pragma once

#include <cstddef>

namespace lockstep::cuda {

enum class Card : unsigned char {
  kAny,     // the host's side of nvcc, which runs none, and the emulator
  kTuring,  // knows no bf16
  kAmpere,  // and what came after
};
#ifdef __CUDA_ARCH__
static_assert(__CUDA_ARCH__ >= 750, "expected compute capability 7.5 or newer");
inline constexpr Card kCard = __CUDA_ARCH__ < 800 ? Card::kTuring : Card::kAmpere;
#else
inline constexpr Card kCard = Card::kAny;
#endif
inline constexpr bool kIsForTuring = kCard == Card::kTuring;

// A kernel's tiles are of the usual size or, on cards that have no room for those, small. A block may have this much
// shared memory on Turing; from Ampere on (99 KiB on cards for desktops, 163 on those for servers), and at most
// (Hopper).
inline constexpr std::size_t kTuringSharedBytes = std::size_t{64} << 10;
inline constexpr std::size_t kAmpereSharedBytes = std::size_t{99} << 10;
inline constexpr std::size_t kAmpereServerSharedBytes = std::size_t{163} << 10;
inline constexpr std::size_t kMostSharedBytes = std::size_t{227} << 10;

// Whether tiles have to be small where a block may have so much shared memory.
constexpr bool has_small_tiles(std::size_t usual_bytes, std::size_t shared_bytes) { return usual_bytes > shared_bytes; }

// Whether a kernel with such tiles is ever launched on such a card. Those that are not are left empty there.
constexpr bool can_be_chosen(Card card, bool is_bf16, std::size_t usual_bytes, bool is_small) {
  switch (card) {
    case Card::kTuring:
      return !is_bf16 && is_small == has_small_tiles(usual_bytes, kTuringSharedBytes);
    case Card::kAmpere:
      return !is_small || has_small_tiles(usual_bytes, kAmpereSharedBytes);
    case Card::kAny:
      break;
  }
  return !is_small || has_small_tiles(usual_bytes, kTuringSharedBytes);
}

// Whether what is launched on a card is what was compiled for it, however much shared memory cards of its kind have.
constexpr bool is_chosen_everywhere(std::size_t usual_bytes) {
  const auto is_there = [&](Card card, std::size_t shared_bytes) {
    return can_be_chosen(card, false, usual_bytes, has_small_tiles(usual_bytes, shared_bytes));
  };
  return is_there(Card::kTuring, kTuringSharedBytes) && is_there(Card::kAmpere, kAmpereSharedBytes) &&
         is_there(Card::kAmpere, kAmpereServerSharedBytes) && is_there(Card::kAmpere, kMostSharedBytes) &&
         is_there(Card::kAny, kTuringSharedBytes) && is_there(Card::kAny, kMostSharedBytes);
}

}  // namespace lockstep::cuda
