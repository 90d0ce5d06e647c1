#include "launcher/job/served_commands.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace lockstep {

std::vector<std::string> hosts_of_ranks(const Placement& placement) {
  std::vector<std::string> hosts;
  for (const Host& host : placement.hosts) {
    hosts.insert(hosts.end(), static_cast<std::size_t>(host.slots), host.name);
  }
  hosts.resize(static_cast<std::size_t>(placement.ranks));
  return hosts;
}

std::vector<std::string> hosts_of_servers(const Placement& placement, int servers) {
  std::vector<std::string> hosts(static_cast<std::size_t>(servers));
  for (std::size_t i = 0; i < hosts.size() && !placement.hosts.empty(); ++i) {
    hosts[i] = placement.hosts[i % placement.hosts.size()].name;
  }
  return hosts;
}

std::vector<std::string> server_command(const LaunchRequest& request, int ranks, int part, int port) {
  std::vector<std::string> words = {request.program, "serve",
                                    "--workers",     std::to_string(ranks),
                                    "--part",        fmt::format("{}/{}", part + 1, request.servers),
                                    "--listen",      request.hosts.empty() ? "127.0.0.1" : "0.0.0.0",
                                    "--port",        std::to_string(port)};
  if (request.config.comm.mode != "sync") {
    words.insert(words.end(), {"--mode", request.config.comm.mode});
  }
  if (!request.tls_cert.empty()) {
    words.insert(words.end(), {"--tls-cert", request.tls_cert, "--tls-key", request.tls_key});
  }
  return words;
}

std::vector<std::string> worker_command(const LaunchRequest& request, const std::string& servers,
                                        const std::string& resume) {
  std::vector<std::string> words = request.worker;
  words.insert(words.end(), {"--set", "comm.servers=" + servers, "--resume", resume});
  return words;
}

std::map<std::string, std::string> worker_variables(int rank, int ranks) {
  return {{"LOCKSTEP_RANK", std::to_string(rank)}, {"LOCKSTEP_WORLD_SIZE", std::to_string(ranks)}};
}

JobSurroundings surroundings_of(const LaunchRequest& request, const std::string& token, const std::string& token_file) {
  return {.reach = request.hosts_are_slurms ? HostReach::kSrun : HostReach::kSsh,
          .ssh = request.ssh,
          .token = token,
          .token_file = token_file};
}

std::vector<ChildCommand> served_commands(const LaunchRequest& request, const Placement& placement,
                                          const std::string& resume) {
  const JobSurroundings surroundings = surroundings_of(request, "", "");
  std::vector<ChildCommand> commands;
  std::vector<std::string> addresses;
  const std::vector<std::string> server_hosts = hosts_of_servers(placement, request.servers);
  for (std::size_t i = 0; i < server_hosts.size(); ++i) {
    const std::vector<std::string> words = server_command(request, placement.ranks, static_cast<int>(i), 0);
    commands.push_back(JobProcess::command(surroundings, server_hosts[i], words, {}));
    addresses.push_back((server_hosts[i].empty() ? "127.0.0.1" : server_hosts[i]) + ":PORT");
  }
  const std::vector<std::string> words = worker_command(request, fmt::format("{}", fmt::join(addresses, ",")), resume);
  const std::vector<std::string> hosts = hosts_of_ranks(placement);
  for (std::size_t rank = 0; rank < hosts.size(); ++rank) {
    const auto variables = worker_variables(static_cast<int>(rank), placement.ranks);
    commands.push_back(JobProcess::command(surroundings, hosts[rank], words, variables));
  }
  return commands;
}

}  // namespace lockstep
