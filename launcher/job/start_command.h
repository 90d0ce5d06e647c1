// The command line that starts a job's workers: Open MPI's mpirun (4 and 5 differ) or Slurm's srun.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "launcher/job/child.h"
#include "launcher/job/hosts.h"

namespace lockstep {

enum class JobStarter { kMpirun, kSrun };

// What ranks on other hosts get of this process's environment.
inline constexpr std::array<const char*, 3> kForwardedVariables = {"LOCKSTEP_LOG", "LD_LIBRARY_PATH",
                                                                   "LOCKSTEP_CUDA_LIBRARIES"};

struct StartPlan {
  JobStarter starter = JobStarter::kMpirun;
  int mpirun_major = 4;                // Open MPI's version
  Placement placement;                 // without hosts: all ranks on this machine
  bool in_slurm = false;               // mpirun inside a Slurm allocation finds the hosts itself
  std::string ssh;                     // how mpirun reaches other hosts; empty: its own choice
  bool as_root = false;                // which mpirun refuses unless told
  int cores = 1;                       // of this machine
  std::vector<std::string> worker;     // lockstep train ...
  std::vector<std::string> forwarded;  // names of variables that the workers get
};

// The starter tells whose line each line of output is: see parse_output().
[[nodiscard]] ChildCommand start_command(const StartPlan& plan);

// What a line of the starter's output holds: of a rank, or its own (rank -1).
struct OutputLine {
  int rank = -1;
  bool is_error = false;  // the rank wrote it to stderr; known of mpirun only
  std::string text;
};
// "[1,3]<stderr>:text" of mpirun, "3: text" of srun --label.
// `mpirun_major`: Open MPI 5 puts a blank behind its tags.
[[nodiscard]] OutputLine parse_output(JobStarter starter, int mpirun_major, std::string_view line);

// 4 of "mpirun (Open MPI) 4.1.4". Throws Error(kUsage) when it is not Open MPI's.
[[nodiscard]] int parse_mpirun_version(const std::string& text);

// A word as one would type it in a shell, and in an #SBATCH line.
[[nodiscard]] std::string quoted(const std::string& word);
// The command as one would type it in a shell.
[[nodiscard]] std::string shell_line(const ChildCommand& command);

}  // namespace lockstep
