// The commands of a job whose ranks add through parameter servers, and the hosts that each runs on.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "launcher/job/child.h"
#include "launcher/job/job_process.h"
#include "launcher/job/launch_request.h"

namespace lockstep {

// Names of hosts by rank and by server; empty: this machine. Hosts are filled one after the other, and the servers are
// on the first ones.
[[nodiscard]] std::vector<std::string> hosts_of_ranks(const Placement& placement);
[[nodiscard]] std::vector<std::string> hosts_of_servers(const Placement& placement, int servers);

// Server `part` of those asked for, counted from 0, for `ranks` workers. `port` 0: any that is free.
[[nodiscard]] std::vector<std::string> server_command(const LaunchRequest& request, int ranks, int part, int port);
// `servers`: HOST:PORT,...
[[nodiscard]] std::vector<std::string> worker_command(const LaunchRequest& request, const std::string& servers,
                                                      const std::string& resume);
[[nodiscard]] std::map<std::string, std::string> worker_variables(int rank, int ranks);

// How this job's processes reach other hosts.
[[nodiscard]] JobSurroundings surroundings_of(const LaunchRequest& request, const std::string& token,
                                              const std::string& token_file);

// All commands of the first start, as they are known before: the port stands for the one that a server will say.
[[nodiscard]] std::vector<ChildCommand> served_commands(const LaunchRequest& request, const Placement& placement,
                                                        const std::string& resume);

}  // namespace lockstep
