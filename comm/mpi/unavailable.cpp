// The twin of module.cpp in a build without MPI.
#include "base/error.h"
#include "comm/mpi/communicator.h"

namespace lockstep {

std::unique_ptr<Communicator> make_mpi_communicator(const CommOptions& /*options*/,
                                                    const RankEnvironment& /*environment*/) {
  fail(ErrorCode::kUnsupported,
       "comm.backend: mpi: this program was built without MPI (CMake option LOCKSTEP_WITH_MPI)");
}

}  // namespace lockstep
