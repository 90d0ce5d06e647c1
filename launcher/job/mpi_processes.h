// Ranks under one mpirun or srun, which live and end together.
#pragma once

#include <csignal>
#include <map>
#include <string>

#include "launcher/job/child.h"
#include "launcher/job/job_output.h"
#include "launcher/job/launch_request.h"
#include "launcher/job/rank_processes.h"

namespace lockstep {

// The command and its surroundings but for `variables` of the attempt.
[[nodiscard]] ChildCommand mpi_command(const LaunchRequest& request, const Placement& placement,
                                       const std::string& resume);

class MpiProcesses final : public RankProcesses {
 public:
  // Throws what Child's constructor throws.
  MpiProcesses(const LaunchRequest& request, const Placement& placement, const std::string& resume,
               std::map<std::string, std::string> variables, JobOutput& output);

  void tend(int timeout_ms) override;
  [[nodiscard]] std::optional<int> exit_code() override { return child_.exit_code(); }
  [[nodiscard]] std::string name() const override { return name_; }
  void stop(bool by_signal) override;
  void terminate() override { child_.signal(SIGTERM); }
  void kill() override { child_.signal_group(SIGKILL); }

 private:
  MpiProcesses(const LaunchRequest& request, const ChildCommand& command, JobOutput& output);

  const JobStarter starter_;
  const int mpirun_major_;
  const std::string name_;
  JobOutput& output_;
  Child child_;
};

}  // namespace lockstep
