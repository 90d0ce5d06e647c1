// Starts a job's workers, watches them, and starts them again, as often as it takes and makes sense.
//
// An attempt is one start of all ranks by mpirun or srun. It ends when the run is finished, when it was asked to save
// and stop, or when something failed; then the next attempt begins from the newest intact checkpoint, on the hosts that
// answer. What ends the job for good: a failure that a new start would only repeat (bad input, a loss that is no
// number), the same step failing three times, or max_restarts.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/log.h"
#include "launcher/job/hosts.h"
#include "launcher/job/slurm.h"
#include "launcher/job/start_command.h"
#include "launcher/signals.h"
#include "trainer/config.h"

namespace lockstep {

struct LaunchRequest {
  Config config;                    // as written
  std::vector<std::string> worker;  // the command of a worker but for --resume
  std::string resume = "auto";      // of the first attempt
  int ranks = 1;                    // at most; a power of two
  std::vector<Host> hosts;          // empty: this machine
  bool hosts_are_slurms = false;    // those of the allocation, which srun reaches
  std::string ssh;                  // how hosts are reached; empty: ssh
  JobStarter starter = JobStarter::kMpirun;
  int mpirun_major = 4;
  std::optional<SlurmJob> slurm;  // inside an allocation
  int max_restarts = 100;
};

// The command and the surroundings of the first attempt, as `lockstep launch --dry-run` prints it.
[[nodiscard]] ChildCommand first_command(const LaunchRequest& request);

class Supervisor {
 public:
  // `stop` listens, and counts signals.
  Supervisor(LaunchRequest request, StopSignal& stop, Log& log);
  ~Supervisor();
  Supervisor(const Supervisor&) = delete;
  Supervisor& operator=(const Supervisor&) = delete;

  // Returns the exit code of the job. Throws Error(kUsage) for hosts that do not answer at the first start.
  [[nodiscard]] int run();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lockstep
