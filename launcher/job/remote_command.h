// Programs on other hosts, reached by ssh or by srun inside an allocation: started with what they are to know and
// others may not see, and signalled.
//
// The command line, which everybody on both hosts can read, holds a small shell script. Variables and the token of
// parameter servers follow on its standard input, then names of signals for the program, a line each. The script leaves
// when the program does, with its exit code, and takes the token's file along. When its input ends nothing happens: the
// program may save and stop by itself.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "launcher/job/child.h"
#include "launcher/job/host_reach.h"

namespace lockstep {

struct RemoteProgram {
  std::string host;
  HostReach reach = HostReach::kSsh;
  std::string ssh;               // empty: OpenSSH's
  std::filesystem::path folder;  // where it runs
  std::vector<std::string> arguments;
};
[[nodiscard]] ChildCommand remote_command(const RemoteProgram& program);
// The first lines of its input. LOCKSTEP_TOKEN_FILE will name a file that holds the token. Neither the token nor values
// may hold the end of a line.
[[nodiscard]] std::string remote_input(const std::string& token, const std::map<std::string, std::string>& variables);
// A line that sends it a signal, by its number.
[[nodiscard]] std::string remote_signal(int number);

}  // namespace lockstep
