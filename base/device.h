// Where memory lives and kernels run. A value, not a build flag: tensors and buffers carry it.
#pragma once

#include <cstdint>

namespace lockstep {

enum class DeviceKind : std::uint8_t { kCpu, kCuda };

struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  std::uint8_t index = 0;  // of the GPU on its node; 0 for the CPU

  friend bool operator==(const Device&, const Device&) = default;
};

}  // namespace lockstep
