// What moves a device's memory between the ranks.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "ops/backend.h"
#include "trainer/config.h"
#include "trainer/device.h"

namespace lockstep {

// Null on CPUs, whose memory `host` itself takes. On GPUs NCCL where every rank has one of its own (comm.backend: auto,
// nccl), else by way of the host. Collective; `host` and `backend` outlive it. Throws Error(kUsage) where
// comm.backend: nccl cannot be had, and what NCCL says.
[[nodiscard]] std::unique_ptr<Communicator> make_device_communicator(const Config& config, const DeviceChoice& device,
                                                                     Communicator& host, Backend& backend);

}  // namespace lockstep
