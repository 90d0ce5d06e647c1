// The communicator of GPU memory over NCCL, beside one of host memory.
//
// Buffers that lie on a GPU go over NCCL (collectives.h), in a stream of their own, so that a sum proceeds while the
// GPU computes. Everything else (buffers in host memory, the blocking calls, allocate()) is the host communicator's,
// over which the ranks also find each other. NCCL is opened when the program runs: see base/cuda/library.h.
//
// A call starts after what compute_stream() holds by then. Work::wait() returns to the host when the result is in
// place, and orders what follows in compute_stream() behind it. All calls and waits come from one thread, which has
// selected its GPU (cuda::use_device) before the communicator is made. NCCL wants a GPU of its own for every rank.
//
// NCCL has no deadlines of its own, nor does it see that a process on the same node ended. Where it waits for longer
// than the timeout, reports an error, or the host communicator has lost a rank meanwhile, NCCL's communicator is
// aborted and Error names the call, this rank and what was said. Which rank came too late is not known.
#pragma once

#include <memory>

#include "comm/communicator.h"

namespace lockstep {

// Collective. `host` is any communicator of the same ranks; it outlives this one, whose close() leaves it open. Throws
// Error(kUnsupported) where there is no NCCL, and what Communicator's calls throw.
[[nodiscard]] std::unique_ptr<Communicator> make_nccl_communicator(const CommOptions& options, Communicator& host);

}  // namespace lockstep
