// The communicator through parameter servers: workers that have nothing but TCP between them and the servers.
//
// Buffers are cut evenly among the servers, which add along the tree, so the bits are those of every other backend
// (docs/determinism.md). Memory from allocate() is shared with servers on this machine, which add in it; otherwise
// frames are sent from wherever a buffer lies. See docs/server-protocol.md for what is sent, and
// docs/parameter-server.md for how a job is started.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "comm/server/session.h"

namespace lockstep {

// Collective: returns when all workers have come. `ranks_per_node`: 0 as detected, otherwise consecutive ranks are
// taken in groups of this many. `wire`: how the elements of f32 sums travel; what kAsIs is not gives up the bits of the
// other backends. Throws what Session's constructor throws; Error(kTimeout) that names a worker that has
// not come.
[[nodiscard]] std::unique_ptr<Communicator> make_server_communicator(server::Session::Options options,
                                                                     int ranks_per_node,
                                                                     server::Wire wire = server::Wire::kAsIs);

}  // namespace lockstep
