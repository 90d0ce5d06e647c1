// Processes as the kernel tells of them, and this one's surroundings.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace lockstep {

[[nodiscard]] std::string host_name();

// The number of the namespace in which this process has its number; 0 when the kernel does not tell. Two processes of
// one host see the same under a process number only within one.
[[nodiscard]] std::uint64_t process_namespace();

struct ProcessStatus {
  char state = '?';              // R running, S sleeping, D in a system call that cannot be interrupted, T stopped, Z
  std::uint64_t start_time = 0;  // a process number may be given to a new process, not with the same start
};
// Of a process, or of a thread, in this process's namespace; nothing when there is none.
[[nodiscard]] std::optional<ProcessStatus> process_status(std::int64_t process);

}  // namespace lockstep
