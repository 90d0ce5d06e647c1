#include "launcher/job/mpi_processes.h"

#include <unistd.h>

#include <cstdlib>
#include <utility>

#include "base/cores.h"
#include "launcher/job/contact.h"
#include "launcher/job/start_command.h"
#include "launcher/job_config.h"

namespace lockstep {
namespace {

ChildCommand with(ChildCommand command, std::map<std::string, std::string> variables) {
  command.variables = std::move(variables);
  return command;
}

}  // namespace

ChildCommand mpi_command(const LaunchRequest& request, const Placement& placement, const std::string& resume) {
  StartPlan plan;
  plan.starter = request.starter;
  plan.mpirun_major = request.mpirun_major;
  plan.placement = placement;
  plan.in_slurm = request.slurm.has_value();
  plan.ssh = request.ssh;
  plan.as_root = ::geteuid() == 0;
  plan.cores = static_cast<int>(usable_cores());
  plan.worker = request.worker;
  plan.worker.insert(plan.worker.end(), {"--resume", resume});
  if (request.starter == JobStarter::kMpirun) {
    plan.forwarded = {kContactVariable, kConfigVariable, "LOCKSTEP_PROGRESS"};
    for (const char* name : kForwardedVariables) {
      if (std::getenv(name) != nullptr) {
        plan.forwarded.emplace_back(name);
      }
    }
  }
  return start_command(plan);
}

MpiProcesses::MpiProcesses(const LaunchRequest& request, const Placement& placement, const std::string& resume,
                           std::map<std::string, std::string> variables, JobOutput& output)
    : MpiProcesses(request, with(mpi_command(request, placement, resume), std::move(variables)), output) {}

MpiProcesses::MpiProcesses(const LaunchRequest& request, const ChildCommand& command, JobOutput& output)
    : starter_(request.starter),
      mpirun_major_(request.mpirun_major),
      name_(command.arguments.front()),
      output_(output),
      child_(command) {}

void MpiProcesses::tend(int timeout_ms) {
  child_.read(timeout_ms, [&](Child::Stream stream, const std::string& text) {
    OutputLine line = parse_output(starter_, mpirun_major_, text);
    line.is_error = starter_ == JobStarter::kMpirun ? line.is_error : stream == Child::Stream::kErr;
    output_.of_rank(line);
  });
}

void MpiProcesses::stop(bool by_signal) {
  if (by_signal) {
    child_.signal(SIGUSR1);  // mpirun and srun hand it on
  }
}

}  // namespace lockstep
