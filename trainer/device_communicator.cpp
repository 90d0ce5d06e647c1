#include "trainer/device_communicator.h"

#include "base/error.h"
#include "comm/nccl/communicator.h"
#include "trainer/staged_communicator.h"

namespace lockstep {

std::unique_ptr<Communicator> make_device_communicator(const Config& config, const DeviceChoice& device,
                                                       Communicator& host, Backend& backend) {
  const std::string& wish = config.comm.backend;
  if (device.device.kind == DeviceKind::kCpu) {
    require(wish != "nccl", "comm.backend: nccl moves the memory of GPUs, but the ranks compute on CPUs (device.kind)");
    return nullptr;
  }
  require(
      wish != "nccl" || !device.is_shared,
      "comm.backend: nccl needs a GPU for every rank, but some share one; comm.backend: auto goes through the host");
  if (wish == "nccl" || (wish == "auto" && host.world_size() > 1 && !device.is_shared)) {
    return make_nccl_communicator({.backend = wish,
                                   .ranks_per_node = config.comm.ranks_per_node,
                                   .timeout_ms = config.comm.timeout_s * 1000,
                                   .elastic = config.train.determinism == Determinism::kElastic},
                                  host);
  }
  return make_staged_communicator(host, backend);
}

}  // namespace lockstep
