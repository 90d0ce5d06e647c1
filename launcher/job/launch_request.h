// What `lockstep launch` was asked for.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "launcher/job/hosts.h"
#include "launcher/job/slurm.h"
#include "launcher/job/start_command.h"
#include "trainer/config.h"

namespace lockstep {

struct LaunchRequest {
  Config config;                    // as written
  std::string config_variable;      // its text, as workers get it: see to_config_variable()
  std::string program;              // this one
  std::vector<std::string> worker;  // the command of a worker but for --resume
  std::string resume = "auto";      // of the first attempt
  int ranks = 1;                    // at most; a power of two
  int servers = 0;                  // parameter servers that come with them; 0: MPI connects the ranks
  std::string tls_cert;             // of the servers, with its key: files, as for lockstep serve; empty: no TLS
  std::string tls_key;
  std::vector<Host> hosts;                   // empty: this machine
  bool hosts_are_slurms = false;             // those of the allocation, which srun reaches
  std::string ssh;                           // how hosts are reached; empty: ssh
  JobStarter starter = JobStarter::kMpirun;  // without servers
  int mpirun_major = 4;
  std::optional<SlurmJob> slurm;  // inside an allocation
  int max_restarts = 100;
};

// Which ranks run where, of the hosts that can be used.
[[nodiscard]] inline Placement placement_of(const LaunchRequest& request, const std::vector<Host>& usable) {
  return request.hosts.empty() ? Placement{request.ranks, {}} : place(usable, request.ranks);
}

}  // namespace lockstep
