#include "base/cores.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <sstream>
#include <thread>

namespace lockstep {
namespace {

namespace fs = std::filesystem;

// The smaller of two numbers of cores of which 0 means no limit.
int smaller_limit(int a, int b) {
  if (a == 0 || b == 0) {
    return std::max(a, b);
  }
  return std::min(a, b);
}

int cores_for(double quota, double period) {
  return quota > 0 && period > 0 ? std::max(1, static_cast<int>(std::ceil(quota / period))) : 0;
}

// cpu.max holds "QUOTA PERIOD" or "max PERIOD" in microseconds.
int limit_of_version_2(const fs::path& group) {
  double quota = 0;
  double period = 0;
  std::ifstream file(group / "cpu.max");
  return file >> quota >> period ? cores_for(quota, period) : 0;
}

int limit_of_version_1(const fs::path& group) {
  double quota = 0;
  double period = 0;
  std::ifstream(group / "cpu.cfs_quota_us") >> quota;  // -1: no limit
  std::ifstream(group / "cpu.cfs_period_us") >> period;
  return cores_for(quota, period);
}

// The tightest limit of a group and those above it. Inside a container the path may be one of the host's that is not to
// be seen; the group at the top is then the container's own.
template <typename Limit>
int limit_along(const fs::path& top, const std::string& group, const Limit& limit_of) {
  int limit = limit_of(top);
  fs::path path = top;
  for (const fs::path& part : fs::path(group).relative_path()) {
    path /= part;
    limit = smaller_limit(limit, limit_of(path));
  }
  return limit;
}

bool lists_cpu(const std::string& controllers) {
  std::istringstream list(controllers);
  for (std::string name; std::getline(list, name, ',');) {
    if (name == "cpu") {
      return true;
    }
  }
  return false;
}

}  // namespace

std::vector<int> allowed_cores() {
  std::vector<int> cores;
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
    for (int core = 0; core < CPU_SETSIZE; ++core) {
      if (CPU_ISSET(core, &allowed)) {
        cores.push_back(core);
      }
    }
  }
  if (cores.empty()) {  // more cores than the set has room for
    cores.resize(std::max(1U, std::thread::hardware_concurrency()));
    for (std::size_t i = 0; i < cores.size(); ++i) {
      cores[i] = static_cast<int>(i);
    }
  }
  return cores;
}

int core_quota(const fs::path& root) {
  // Lines of "number:controllers:path"; version 2 has no controllers.
  int limit = 0;
  std::ifstream groups(root / "proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const std::size_t first = line.find(':');
    const std::size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) {
      continue;
    }
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (controllers.empty()) {
      limit = smaller_limit(limit, limit_along(root / "sys/fs/cgroup", path, limit_of_version_2));
    } else if (lists_cpu(controllers)) {
      limit = smaller_limit(limit, limit_along(root / "sys/fs/cgroup/cpu", path, limit_of_version_1));
    }
  }
  return limit;
}

int usable_cores() { return smaller_limit(static_cast<int>(allowed_cores().size()), core_quota()); }

std::string describe_cores(const std::string& host, const std::vector<int>& cores) {
  return fmt::format("{} {}", host, fmt::join(cores, ","));
}

int cores_of_host(const std::string& host, const std::vector<std::string>& descriptions) {
  std::set<int> cores;
  for (const std::string& description : descriptions) {
    const std::size_t space = description.rfind(' ');
    if (description.substr(0, space) != host) {
      continue;
    }
    std::istringstream list(description.substr(space + 1));
    for (std::string core; std::getline(list, core, ',');) {
      cores.insert(std::stoi(core));
    }
  }
  return static_cast<int>(cores.size());
}

}  // namespace lockstep
