#include "base/cuda/devices.h"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <array>
#include <utility>

namespace lockstep::cuda {
namespace {

// What the kernels are compiled for at least.
constexpr int kOldestMajor = LOCKSTEP_OLDEST_CAPABILITY / 10;
constexpr int kOldestMinor = LOCKSTEP_OLDEST_CAPABILITY % 10;

std::string version_text(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

std::string problem_of(cudaError_t status) {
  static_cast<void>(cudaGetLastError());
  int driver = 0;
  int runtime = 0;
  static_cast<void>(cudaDriverGetVersion(&driver));
  static_cast<void>(cudaRuntimeGetVersion(&runtime));
  if (driver == 0) {
    return "there is no NVIDIA driver on this machine (libcuda.so.1 is not found)";
  }
  if (status == cudaErrorInsufficientDriver) {
    return fmt::format("the NVIDIA driver serves CUDA {}, this program was built with CUDA {}; update the driver",
                       version_text(driver), version_text(runtime));
  }
  if (status == cudaErrorNoDevice) {
    return "the driver shows no GPU (CUDA_VISIBLE_DEVICES may hide them)";
  }
  return cudaGetErrorString(status);
}

DeviceInfo describe(int index) {
  DeviceInfo info;
  cudaDeviceProp properties{};
  if (const cudaError_t status = cudaGetDeviceProperties(&properties, index); status != cudaSuccess) {
    info.problem = problem_of(status);
    return info;
  }
  info.name = properties.name;
  info.major = properties.major;
  info.minor = properties.minor;
  info.multiprocessors = properties.multiProcessorCount;
  info.memory_bytes = properties.totalGlobalMem;
  std::array<char, 32> bus_id{};
  static_cast<void>(cudaDeviceGetPCIBusId(bus_id.data(), bus_id.size(), index));
  info.bus_id = bus_id.data();
  if (std::pair(info.major, info.minor) < std::pair(kOldestMajor, kOldestMinor)) {
    info.problem = fmt::format("compute capability {}.{}, expected {}.{} or newer", info.major, info.minor,
                               kOldestMajor, kOldestMinor);
  }
  return info;
}

}  // namespace

DeviceList list_devices() {
  DeviceList list;
  int count = 0;
  if (const cudaError_t status = cudaGetDeviceCount(&count); status != cudaSuccess) {
    list.problem = problem_of(status);
    return list;
  }
  for (int index = 0; index < count; ++index) {
    list.devices.push_back(describe(index));
  }
  if (count == 0) {
    list.problem = problem_of(cudaErrorNoDevice);
  }
  return list;
}

}  // namespace lockstep::cuda
