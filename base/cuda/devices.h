// Which GPUs this process sees, and why one cannot be used. Answers on every machine, with or without CUDA.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace lockstep::cuda {

struct DeviceInfo {
  std::string name;
  int major = 0;  // compute capability
  int minor = 0;
  int multiprocessors = 0;
  std::uint64_t memory_bytes = 0;
  std::uint64_t free_bytes = 0;
  std::string bus_id;   // the same on every process of the node, whatever CUDA_VISIBLE_DEVICES says
  std::string problem;  // why it cannot be used, empty when it can
};

struct DeviceList {
  std::vector<DeviceInfo> devices;
  std::string problem;  // why there is none
};

// Never throws.
[[nodiscard]] DeviceList list_devices();

}  // namespace lockstep::cuda
