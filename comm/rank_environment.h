// How this process was started: alone, with a rank of its own, by mpirun, or by srun. Read from the environment, before
// MPI is touched.
#pragma once

#include <functional>
#include <optional>
#include <string>

namespace lockstep {

enum class Starter {
  kAlone,   // from a shell, also inside an sbatch script or a salloc shell
  kByHand,  // with LOCKSTEP_RANK and LOCKSTEP_WORLD_SIZE: a worker of parameter servers
  kMpirun,  // by mpirun, mpiexec or another PMI/PMIx launcher
  kSrun,    // as a task of a Slurm job step
};

struct RankEnvironment {
  Starter starter = Starter::kAlone;
  int rank = 0;
  int world_size = 1;  // 0: several ranks are possible, and only MPI can tell how many

  friend bool operator==(const RankEnvironment&, const RankEnvironment&) = default;
};

// The value of an environment variable, nothing when it is not set.
using EnvironmentLookup = std::function<std::optional<std::string>(const std::string& name)>;

// Looks into this process's own environment.
[[nodiscard]] EnvironmentLookup process_environment();

// Throws Error(kUsage) for numbers that make no rank, for one of LOCKSTEP_RANK and LOCKSTEP_WORLD_SIZE without the
// other, and when srun started several tasks without an interface through which MPI could connect them: each
// would be "rank 0 of 1" and do the whole job again.
[[nodiscard]] RankEnvironment detect_rank_environment(const EnvironmentLookup& environment);

// Throws Error(kUsage) when MPI sees another number of ranks than were started: this program's MPI library does not
// belong to the launcher.
void check_mpi_world_size(const RankEnvironment& environment, int mpi_world_size);

}  // namespace lockstep
