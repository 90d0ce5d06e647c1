#include "tests/support/cluster.h"

#include <sstream>
#include <stdexcept>
#include <utility>

namespace lockstep {
namespace {

constexpr int kExitCannot = 77;

}  // namespace

Cluster::Cluster(std::string testbed, const std::vector<std::filesystem::path>& shares,
                 const std::vector<std::string>& options)
    : testbed_(std::move(testbed)) {
  std::vector<std::string> words = options;
  for (const std::filesystem::path& share : shares) {
    words.insert(words.end(), {"--share", share.string()});
  }
  const ProcessResult result = call("up", words);
  problem_ = result.exit_code == kExitCannot ? result.err : "";
  if (result.exit_code != 0 && problem_.empty()) {
    throw std::runtime_error("testbed.sh up: " + result.err);
  }
}

Cluster::~Cluster() { call("down", {}); }

std::vector<std::string> Cluster::on(const std::string& host, const std::vector<std::string>& command) const {
  std::vector<std::string> words = {"bash", testbed_, "exec", folder_.path(), host};
  words.insert(words.end(), command.begin(), command.end());
  return words;
}

ProcessResult Cluster::call(const std::string& verb, const std::vector<std::string>& words) const {
  std::vector<std::string> command = {"bash", testbed_, verb, folder_.path()};
  command.insert(command.end(), words.begin(), words.end());
  return run_process(command);
}

std::vector<pid_t> Cluster::processes(const std::string& host, const std::string& pattern) const {
  std::vector<pid_t> found;
  std::istringstream numbers(call("pids", {host, pattern}).out);
  for (pid_t number = 0; numbers >> number;) {
    found.push_back(number);
  }
  return found;
}

}  // namespace lockstep
