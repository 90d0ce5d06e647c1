#include "launcher/job/job_process.h"

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <utility>

#include "launcher/job/remote_command.h"
#include "launcher/job/start_command.h"

namespace lockstep {
namespace {

constexpr std::chrono::milliseconds kRemotePatience{1'000};

bool is_elsewhere(const std::string& host) { return !host.empty() && !is_here(host); }

}  // namespace

ChildCommand JobProcess::command(const JobSurroundings& surroundings, const std::string& host,
                                 const std::vector<std::string>& arguments,
                                 const std::map<std::string, std::string>& variables) {
  if (is_elsewhere(host)) {
    return remote_command({.host = host,
                           .reach = surroundings.reach,
                           .ssh = surroundings.ssh,
                           .folder = std::filesystem::current_path(),
                           .arguments = arguments});
  }
  ChildCommand command{arguments, variables};
  if (!surroundings.token_file.empty()) {
    command.variables["LOCKSTEP_TOKEN_FILE"] = surroundings.token_file;
  }
  command.outlives_reader = true;  // without lockstep launch it saves and stops
  return command;
}

JobProcess::JobProcess(const JobSurroundings& surroundings, const std::string& host,
                       const std::vector<std::string>& arguments, std::map<std::string, std::string> variables)
    : is_remote_(is_elsewhere(host)), child_(command(surroundings, host, arguments, variables)) {
  if (is_remote_) {
    for (const char* name : kForwardedVariables) {
      if (const char* const value = std::getenv(name); value != nullptr) {
        variables.emplace(name, value);
      }
    }
    child_.write(remote_input(surroundings.token, variables));
  }
}

void JobProcess::signal(int number) {
  if (is_remote_) {
    child_.write(remote_signal(number));
  } else {
    child_.signal(number);
  }
}

void JobProcess::kill() {
  if (!killed_at_) {
    killed_at_ = std::chrono::steady_clock::now();
    signal(SIGKILL);
  }
}

std::optional<int> JobProcess::exit_code() {
  if (killed_at_ && std::chrono::steady_clock::now() - *killed_at_ > kRemotePatience) {
    child_.signal_group(SIGKILL);
  }
  return child_.exit_code();
}

}  // namespace lockstep
