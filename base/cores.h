// How many cores this process, or the processes of this machine together, may keep busy.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace lockstep {

// The numbers of the cores that this process may run on (its affinity), in ascending order, at least one.
[[nodiscard]] std::vector<int> allowed_cores();

// The cores' worth of time that control groups grant this process and its siblings (docker --cpus, Slurm, systemd),
// rounded up; 0 where there is no limit. Version 2 of control groups, and version 1. `root` stands before /proc and
// /sys.
[[nodiscard]] int core_quota(const std::filesystem::path& root = "/");

// Threads that are of use to this process when it is alone: at least 1.
[[nodiscard]] int usable_cores();

// "host 0,1,2,3": what a process tells its neighbours of itself, and how many cores those on `host` may use together.
[[nodiscard]] std::string describe_cores(const std::string& host, const std::vector<int>& cores);
[[nodiscard]] int cores_of_host(const std::string& host, const std::vector<std::string>& descriptions);

}  // namespace lockstep
