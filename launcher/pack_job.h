// Packing by all ranks of a job: how pack() meets MPI, progress lines and signals.
#pragma once

#include "base/log.h"
#include "comm/communicator.h"
#include "data/pack/pack.h"
#include "launcher/signals.h"

namespace lockstep {

// A rank waits for the others once per unit, and while rank 0 trains a vocabulary.
inline constexpr int kPackTimeoutMs = 30 * 60 * 1000;

// Collective. Throws AgreedError for what pack() throws alike on every rank, Error where other ranks are out of reach.
PackResult pack_on_all_ranks(const PackOptions& options, Communicator& communicator, Log& log, const StopSignal& stop);

}  // namespace lockstep
