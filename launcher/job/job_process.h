// One process of a job, on this machine or on another host.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "launcher/job/child.h"
#include "launcher/job/host_reach.h"

namespace lockstep {

// How other hosts are reached, and what processes there and here share.
struct JobSurroundings {
  HostReach reach = HostReach::kSsh;
  std::string ssh;         // empty: OpenSSH's
  std::string token;       // of the parameter servers
  std::string token_file;  // holds it, on this machine
};

class JobProcess {
 public:
  // `host` empty: here. Throws what Child's constructor throws.
  JobProcess(const JobSurroundings& surroundings, const std::string& host, const std::vector<std::string>& arguments,
             std::map<std::string, std::string> variables);
  // The command that would be run, with all that others can see of it.
  [[nodiscard]] static ChildCommand command(const JobSurroundings& surroundings, const std::string& host,
                                            const std::vector<std::string>& arguments,
                                            const std::map<std::string, std::string>& variables);

  [[nodiscard]] Child& child() { return child_; }
  [[nodiscard]] bool is_remote() const { return is_remote_; }
  void signal(int number);
  // A host that does not answer is not waited for: the connection to it is given up then.
  void kill();
  // Of the process, or of what connects to it. Nothing while it runs.
  [[nodiscard]] std::optional<int> exit_code();

 private:
  bool is_remote_;
  Child child_;
  std::optional<std::chrono::steady_clock::time_point> killed_at_;
};

}  // namespace lockstep
