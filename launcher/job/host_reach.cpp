#include "launcher/job/host_reach.h"

#include <fmt/format.h>

#include <algorithm>
#include <future>

#include "base/error.h"
#include "base/process.h"
#include "launcher/job/child.h"
#include "launcher/job/contact.h"

namespace lockstep {
namespace {

constexpr int kDeadlineMs = 10'000;

ChildCommand probe_command(HostReach reach, const std::string& ssh, const std::string& host) {
  if (reach == HostReach::kSrun) {
    return {{"srun", "--overlap", "--quiet", "--immediate=5", "--nodes=1", "--ntasks=1", "--nodelist=" + host, "true"}};
  }
  ChildCommand probe{ssh_words(ssh)};
  probe.arguments.insert(probe.arguments.end(), {host, "true"});
  return probe;
}

std::string problem_of(HostReach reach, const std::string& ssh, const std::string& host) {
  if (is_here(host)) {
    return {};
  }
  const ChildCommand probe = probe_command(reach, ssh, host);
  try {
    const ChildResult result = run_child(probe, kDeadlineMs);
    if (result.timed_out) {
      return "no answer";
    }
    if (result.exit_code == 0) {
      return {};
    }
    const std::string first_line = result.output.substr(0, result.output.find('\n'));
    return fmt::format("{} ended with exit code {}{}{}", probe.arguments.front(), result.exit_code,
                       first_line.empty() ? "" : ": ", first_line);
  } catch (const Error& error) {
    return error.what();
  }
}

}  // namespace

bool is_here(const std::string& host) {
  const std::string own = host_name();
  if (host == own || host == own.substr(0, own.find('.')) || host == "localhost" || host.starts_with("127.")) {
    return true;
  }
  const std::vector<std::string> addresses = own_addresses();
  return std::find(addresses.begin(), addresses.end(), host) != addresses.end();
}

std::vector<std::string> ssh_words(const std::string& ssh) {
  if (!ssh.empty()) {
    return {ssh};
  }
  return {"ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-o", "ServerAliveInterval=5"};
}

std::vector<std::string> problems_of_hosts(const std::vector<Host>& hosts, HostReach reach, const std::string& ssh) {
  std::vector<std::future<std::string>> answers;
  for (const Host& host : hosts) {
    answers.push_back(std::async(std::launch::async, [&] { return problem_of(reach, ssh, host.name); }));
  }
  std::vector<std::string> problems;
  for (std::future<std::string>& answer : answers) {
    problems.push_back(answer.get());
  }
  return problems;
}

}  // namespace lockstep
