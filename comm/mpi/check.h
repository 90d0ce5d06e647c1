// The one way MPI functions are called: check(MPI_Isend(...), "MPI_Isend").
#pragma once

#include <mpi.h>

namespace lockstep::mpi {

// Throws Error(kPeerLost) with MPI's own text unless `result` is MPI_SUCCESS: once communicators return their errors,
// what goes wrong in a running job is the connection to another rank.
void check(int result, const char* function);

}  // namespace lockstep::mpi
