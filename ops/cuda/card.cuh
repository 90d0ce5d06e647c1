// The card that device code is being compiled for, for constants within kernels. What the host calls must not depend on
// it: which kernels there are is the same for all cards.
#pragma once

namespace lockstep::cuda {

#ifdef __CUDA_ARCH__
inline constexpr bool kIsForAnyCard = false;
inline constexpr bool kIsForTuring = __CUDA_ARCH__ < 800;
#else  // the host's side of nvcc, which runs none, and the emulator, which is any card
inline constexpr bool kIsForAnyCard = true;
inline constexpr bool kIsForTuring = false;
#endif

}  // namespace lockstep::cuda
