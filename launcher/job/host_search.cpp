#include "launcher/job/host_search.h"

#include <chrono>
#include <utility>

#include "launcher/job/host_reach.h"

namespace lockstep {

HostSearch::HostSearch(std::vector<std::string> hosts, const JobSurroundings& job)
    : answer_(std::async(std::launch::async, [hosts = std::move(hosts), reach = job.reach, ssh = job.ssh] {
        for (const std::string& host : hosts) {
          if (problems_of_hosts({{host, 1}}, reach, ssh).front().empty()) {
            return host;
          }
        }
        return std::string();
      })) {}

std::optional<std::string> HostSearch::result() {
  if (answer_.wait_for(std::chrono::milliseconds(0)) != std::future_status::ready) {
    return {};
  }
  return answer_.get();
}

}  // namespace lockstep
