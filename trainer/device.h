// Which device each rank computes on.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/device.h"
#include "comm/communicator.h"
#include "ops/backend.h"
#include "trainer/config.h"

namespace lockstep {

// What a rank says of itself: its host, and the bus ids of the GPUs that it can use, in the order in which it sees
// them.
struct RankGpus {
  std::string host;
  std::vector<std::string> bus_ids;
};

struct GpuAssignment {
  std::vector<int> index;  // by rank, into its bus_ids; -1 where a rank has none
  bool is_shared = false;  // some GPU serves several ranks
};
// Ranks of a host take, in their order, the first of their GPUs that the fewest others have. Pure.
[[nodiscard]] GpuAssignment assign_gpus(const std::vector<RankGpus>& ranks);

struct DeviceChoice {
  Device device;
  bool is_shared = false;  // on some rank: a GPU serves several ranks
  bool tf32 = false;       // as DeviceConfig; never on a CPU
  std::string note = {};   // something that a user should know, the same on every rank; mostly empty
};
// Collective. `auto` is cuda where every rank has a GPU that can be used in this precision, else cpu. Throws
// Error(kUnsupported) that says why cuda cannot be had; Error(kUsage) when ranks would have to share a GPU and
// device.share does not say so. The same on every rank.
[[nodiscard]] DeviceChoice choose_device(const DeviceConfig& config, Precision precision, Communicator& communicator);

// "NVIDIA H100 80GB HBM3", or "CPU".
[[nodiscard]] std::string name_of(const Device& device);

[[nodiscard]] std::unique_ptr<Backend> make_backend(const DeviceChoice& choice, int threads);

// Dense operations a second that its vendor states for a GPU in the working dtype, in f32 with or without TF32; 0 for
// one that is not in the table. `name` is the driver's.
[[nodiscard]] double stated_peak_flop_per_s(const std::string& name, DType working, bool tf32);

// What MFU is measured by: what the GPU's vendor states, else what a large product reaches here, which takes a moment.
[[nodiscard]] double peak_flop_per_s(Backend& backend, DType working, bool tf32);

}  // namespace lockstep
