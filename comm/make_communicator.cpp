#include "base/error.h"
#include "comm/communicator.h"
#include "comm/mpi/communicator.h"
#include "comm/rank_environment.h"
#include "comm/self_communicator.h"

namespace lockstep {

std::unique_ptr<Communicator> make_communicator(const CommOptions& options) {
  const std::string& backend = options.backend;
  require(backend == "auto" || backend == "self" || backend == "mpi" || backend == "nccl",
          "comm.backend: found \"{}\", expected auto, self, mpi or nccl", backend);
  require(options.ranks_per_node >= 0, "comm.ranks_per_node: found {}, expected 0 (as detected) or more",
          options.ranks_per_node);
  require(options.timeout_ms > 0, "comm: the timeout is {} ms, expected more than 0", options.timeout_ms);

  const RankEnvironment environment = detect_rank_environment(process_environment());
  if (backend == "mpi" || (backend != "self" && environment.world_size != 1)) {
    return make_mpi_communicator(options, environment);
  }
  require(environment.world_size == 1,
          "comm.backend: self makes a world of one rank, but {} ranks were started and each would do the whole job; "
          "use auto or mpi",
          environment.world_size == 0 ? "several" : std::to_string(environment.world_size));
  return std::make_unique<SelfCommunicator>();
}

}  // namespace lockstep
