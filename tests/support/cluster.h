// Several hosts inside this machine (cluster/testbed.sh), as long as the object lives.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <string>
#include <vector>

#include "tests/support/process.h"
#include "tests/support/temporary_folder.h"

namespace lockstep {

class Cluster {
 public:
  // `shares`: folders below /tmp that the hosts are to see; `options` of testbed.sh up. Look at problem() first.
  Cluster(std::string testbed, const std::vector<std::filesystem::path>& shares,
          const std::vector<std::string>& options);
  ~Cluster();
  Cluster(const Cluster&) = delete;
  Cluster& operator=(const Cluster&) = delete;

  // Why this machine holds no such cluster; empty when it is up. Throws std::runtime_error when it could but did not.
  [[nodiscard]] const std::string& problem() const { return problem_; }

  // The command as it runs on that host.
  [[nodiscard]] std::vector<std::string> on(const std::string& host, const std::vector<std::string>& command) const;
  // testbed.sh VERB DIR WORDS...
  ProcessResult call(const std::string& verb, const std::vector<std::string>& words) const;
  // Processes on that host whose command line matches.
  [[nodiscard]] std::vector<pid_t> processes(const std::string& host, const std::string& pattern) const;
  // A program that works as ssh does.
  [[nodiscard]] std::string ssh() const { return folder_ / "ssh"; }
  [[nodiscard]] std::filesystem::path folder() const { return folder_.path(); }

 private:
  std::string testbed_;
  TemporaryFolder folder_;
  std::string problem_;
};

}  // namespace lockstep
