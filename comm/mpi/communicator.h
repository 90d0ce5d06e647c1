// The communicator over MPI.
//
// MPI is called from one thread at a time: from one of the communicator's own, so that a sum proceeds while the caller
// computes, or, for a short sum, from the caller that waits for it (work_queue.h). Calls are queued in order; blocking
// ones are queued and waited for. Sums take the path that topology.h finds: shared memory within a node
// (node_sum.h), messages between nodes or, where nodes do not fit the tree, between all ranks (exchange.h). Every wait
// goes through watch.h, which is where deadlines and lost peers become errors.
//
// Starting and ending are the parts that MPI does not let anybody put a deadline on: MPI_Init, the creation of
// communicators and windows, MPI_Finalize. The first two happen when all ranks are known to be there; the last only
// after close().
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "comm/rank_environment.h"

namespace lockstep {

// Collective. Opens the module that holds all of this (module.h). Throws Error(kUsage, kUnsupported).
[[nodiscard]] std::unique_ptr<Communicator> make_mpi_communicator(const CommOptions& options,
                                                                  const RankEnvironment& environment);

}  // namespace lockstep
