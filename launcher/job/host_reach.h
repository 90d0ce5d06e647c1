// Whether other hosts can take ranks: asked before every start, since mpirun waits without a deadline for one that does
// not answer.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launcher/job/hosts.h"

namespace lockstep {

enum class HostReach : std::uint8_t { kSsh, kSrun };

// Whether `host` is a name or an address of this machine.
[[nodiscard]] bool is_here(const std::string& host);

// The command that runs another on a host, which follows: `ssh` as given, or OpenSSH's (empty), which then neither asks
// for anything nor waits long.
[[nodiscard]] std::vector<std::string> ssh_words(const std::string& ssh);

// Starts `true` on every host, on all at a time, through `ssh` (empty: OpenSSH's), or through srun inside an
// allocation. Returns why each cannot be used, empty for those that answer.
[[nodiscard]] std::vector<std::string> problems_of_hosts(const std::vector<Host>& hosts, HostReach reach,
                                                         const std::string& ssh);

}  // namespace lockstep
