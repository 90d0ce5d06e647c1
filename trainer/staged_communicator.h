// Sums and gathers of device memory by way of the host, for ranks that share a GPU or have no NCCL: the bytes go
// through host memory, and a communicator of host memory makes the same sums as it does for CPU ranks, to the bit.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "ops/backend.h"

namespace lockstep {

// Views of device memory are staged, everything else goes to `host`. A call waits until the device has computed what it
// is given; the sum then proceeds beside later computing, and Work::wait() copies it back. Both arguments outlive it.
[[nodiscard]] std::unique_ptr<Communicator> make_staged_communicator(Communicator& host, Backend& backend);

}  // namespace lockstep
