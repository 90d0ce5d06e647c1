// How many cores there are for the ranks of a job.
#pragma once

#include "comm/communicator.h"

namespace lockstep {

// Collective: the cores that this rank's node offers to its ranks together, whether a launcher bound them or not, and
// no more than the quota of a container.
[[nodiscard]] int cores_on_node(Communicator& communicator);

}  // namespace lockstep
