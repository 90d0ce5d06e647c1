// The emulator's twin of base/cuda/launch.cuh: the stream's thread runs the kernel, with what the arguments are now.
#pragma once

#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "base/cuda/launch_shape.h"
#include "base/cuda/runtime.h"
#include "tests/cuda_emulator/block.h"
#include "tests/cuda_emulator/stream.h"

namespace lockstep::cuda {

template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
            const Arguments&... arguments) {
  const cuda_emulator::Grid grid{shape.blocks, shape.threads, shape.shared_bytes};
  const auto reaches_it = [](const auto& argument) {  // as far as an argument is a pointer itself
    if constexpr (std::is_pointer_v<std::decay_t<decltype(argument)>>) {
      return argument == nullptr || cuda_emulator::is_on_device(argument);
    }
    return true;
  };
  check((reaches_it(arguments) && ...) ? cudaSuccess : cudaErrorIllegalAddress, name);
  check(cuda_emulator::launch(name, reinterpret_cast<const void*>(kernel), grid, stream,
                              [kernel, values = std::tuple<Parameters...>(arguments...)] { std::apply(kernel, values); }),
        name);
}

inline char* dynamic_shared_memory() { return cuda_emulator::shared_memory(); }

}  // namespace lockstep::cuda
