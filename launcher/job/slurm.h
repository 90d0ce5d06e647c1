// Slurm: the allocation that this process runs in, and batch scripts.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "comm/rank_environment.h"
#include "launcher/job/hosts.h"

namespace lockstep {

// The allocation of the batch script or shell that this process belongs to.
struct SlurmJob {
  std::string id;         // as scontrol takes it: "4711", "4711_3" for a task of an array
  int restarts = 0;       // how often it was put back into the queue
  bool is_batch = false;  // started by sbatch: it can be put back
  std::vector<Host> hosts;
  std::optional<std::chrono::system_clock::time_point> end;  // of the time limit
};
// Nothing outside of Slurm. Throws Error(kUsage) inside of a job step: srun lockstep launch would start as many
// launchers as the step has tasks.
[[nodiscard]] std::optional<SlurmJob> find_slurm_job(const EnvironmentLookup& environment);

// "JobState=RUNNING Reason=None ..." of scontrol show job -o, by key.
[[nodiscard]] std::map<std::string, std::string> parse_scontrol(const std::string& text);
// Whether a job that has saved is to be put back by its own hand: not one that is being cancelled, and not one that
// Slurm puts back itself.
[[nodiscard]] bool may_requeue(const std::map<std::string, std::string>& job);

// Asks Slurm whether it may, and puts the job back. Returns why it was not, empty when it was. Throws nothing.
[[nodiscard]] std::string requeue(const std::string& id);

// Whether srun has a PMIx, by which MPI's ranks find each other.
[[nodiscard]] bool srun_has_pmix();

struct BatchOptions {
  std::string name;
  int nodes = 1;
  int ranks_per_node = 1;
  int cpus_per_rank = 0;  // 0: Slurm's default
  int gpus_per_node = 0;
  std::string time;  // as sbatch takes it; empty: the partition's
  std::string partition;
  std::string account;
  int signal_s = 120;  // before the end of the time limit
  std::string folder;  // that the script runs in
  std::string output;  // file of the script's output, %j for the job's number and %% for a percent sign
  std::vector<std::string> command;
};
[[nodiscard]] std::string batch_script(const BatchOptions& options);
inline constexpr int kMostSignalSeconds = 65'535;  // that sbatch takes

// RUN/job.sbatch: the script that was last submitted.
[[nodiscard]] std::filesystem::path batch_file(const std::filesystem::path& run);
// Seconds of a time limit as sbatch takes it, rounded up to minutes, as Slurm does. Nothing for none ("0", "UNLIMITED")
// and for what is no time, which sbatch refuses.
[[nodiscard]] std::optional<std::int64_t> parse_time_limit(const std::string& text);

}  // namespace lockstep
