#include "comm/rank_environment.h"

#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <limits>

#include "base/error.h"

namespace lockstep {
namespace {

// Slurm gives the steps that are no srun of the user (the batch script, the shell of salloc, the step of extern
// processes) numbers from here on.
constexpr std::int64_t kFirstSpecialStep = 0xfffffff0;

std::optional<std::int64_t> integer(const EnvironmentLookup& environment, const std::string& name) {
  const std::optional<std::string> text = environment(name);
  std::int64_t value = 0;
  if (!text) {
    return {};
  }
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), value);
  if (error != std::errc() || end != text->data() + text->size()) {
    return {};
  }
  return value;
}

std::optional<RankEnvironment> from_variables(const EnvironmentLookup& environment, Starter starter,
                                              const std::string& rank_name, const std::string& size_name) {
  const auto rank = integer(environment, rank_name);
  const auto size = integer(environment, size_name);
  if (!rank || !size) {
    return {};
  }
  require(*size >= 1 && *rank >= 0 && *rank < *size && *size <= std::numeric_limits<int>::max(),
          "start: the environment says {}={} and {}={}, expected a rank below the number of ranks", rank_name, *rank,
          size_name, *size);
  return RankEnvironment{starter, static_cast<int>(*rank), static_cast<int>(*size)};
}

// A task that srun started, or nothing. An sbatch script and the shell of salloc carry most of the same variables (also
// SLURM_PROCID and SLURM_NTASKS, which there is the number of tasks of a step still to come), but no number of a user's
// step.
std::optional<RankEnvironment> from_slurm_step(const EnvironmentLookup& environment) {
  const auto step = integer(environment, "SLURM_STEP_ID");
  const auto rank = integer(environment, "SLURM_PROCID");
  auto size = integer(environment, "SLURM_STEP_NUM_TASKS");
  if (!size) {
    size = integer(environment, "SLURM_NTASKS");
  }
  if (!step || *step < 0 || *step >= kFirstSpecialStep || !rank || !size) {
    return {};
  }
  return RankEnvironment{Starter::kSrun, static_cast<int>(*rank), static_cast<int>(*size)};
}

}  // namespace

EnvironmentLookup process_environment() {
  return [](const std::string& name) -> std::optional<std::string> {
    const char* const value = std::getenv(name.c_str());
    if (value == nullptr) {
      return {};
    }
    return value;
  };
}

RankEnvironment detect_rank_environment(const EnvironmentLookup& environment) {
  if (const auto by_hand = from_variables(environment, Starter::kByHand, "LOCKSTEP_RANK", "LOCKSTEP_WORLD_SIZE")) {
    return *by_hand;
  }
  require(!environment("LOCKSTEP_RANK") && !environment("LOCKSTEP_WORLD_SIZE"),
          "start: LOCKSTEP_RANK is {} and LOCKSTEP_WORLD_SIZE is {}, expected two numbers",
          environment("LOCKSTEP_RANK").value_or("not set"), environment("LOCKSTEP_WORLD_SIZE").value_or("not set"));
  // mpirun first: inside a Slurm job it starts its daemons by srun, and their variables reach the ranks too.
  if (const auto mpirun =
          from_variables(environment, Starter::kMpirun, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")) {
    return *mpirun;
  }
  const bool has_pmi = environment("PMIX_RANK").has_value() || environment("PMI_RANK").has_value();
  if (const auto slurm = from_slurm_step(environment)) {
    require(
        slurm->world_size == 1 || has_pmi,
        "start: srun started {} tasks but gave them no PMIx, so each would be rank 0 of 1 and do the whole job again; "
        "use `srun --mpi=pmix` (`srun --mpi=list` shows what this cluster has) or mpirun",
        slurm->world_size);
    return *slurm;
  }
  if (const auto hydra = from_variables(environment, Starter::kMpirun, "PMI_RANK", "PMI_SIZE")) {
    return *hydra;
  }
  if (const auto rank = integer(environment, "PMIX_RANK")) {
    return {Starter::kMpirun, static_cast<int>(*rank), 0};
  }
  return {};
}

void check_mpi_world_size(const RankEnvironment& environment, int mpi_world_size) {
  if (environment.world_size == 0 || environment.world_size == mpi_world_size) {
    return;
  }
  if (environment.starter == Starter::kSrun) {
    fail(ErrorCode::kUsage,
         "start: srun started {} tasks, but MPI sees {} rank(s): this program's MPI and srun's `--mpi` type do not fit "
         "together, and each task would do the whole job again; try `srun --mpi=pmix`, or mpirun inside the job",
         environment.world_size, mpi_world_size);
  }
  fail(ErrorCode::kUsage,
       "start: the launcher started {} ranks, but MPI sees {} rank(s): the launcher belongs to another MPI than this "
       "program was built with, and each rank would do the whole job again; use that MPI's mpirun",
       environment.world_size, mpi_world_size);
}

}  // namespace lockstep
