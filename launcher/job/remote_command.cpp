#include "launcher/job/remote_command.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/error.h"
#include "launcher/job/start_command.h"

namespace lockstep {
namespace {

// $0: the folder; $@: the program. In one line, which csh takes as a word, too. `read` and `printf` are the shell's
// own, so that nothing of this is on a command line. A program in the background has no input and ignores SIGINT and
// SIGQUIT unless it asks for them, as lockstep does. Output to a connection that broke must not end it: SIGPIPE is
// ignored. Signals to all processes of a Slurm step reach the shell, too, which waits all the same.
constexpr const char* kScript =
    R"(cd "$0" || exit 2; trap "" PIPE; folder=$(mktemp -d "${TMPDIR:-/tmp}/lockstep.XXXXXX") || exit 1; )"
    R"(trap "rm -rf \"$folder\"" EXIT; IFS= read -r line; (umask 077; printf "%s\n" "$line" >"$folder/token"); )"
    R"(export LOCKSTEP_TOKEN_FILE="$folder/token"; )"
    R"(while IFS= read -r line && [ -n "$line" ]; do export "$line"; done; exec 3<&0; )"
    R"("$@" 3<&- & process=$!; )"
    R"((while IFS= read -r line; do kill -s "$line" "$process"; done) <&3 >/dev/null 2>&1 & signals=$!; )"
    R"(trap : INT TERM USR1; wait "$process"; code=$?; )"
    R"(while kill -0 "$process" 2>/dev/null; do wait "$process"; code=$?; done; )"
    R"(kill "$signals" 2>/dev/null; exit "$code")";

}  // namespace

ChildCommand remote_command(const RemoteProgram& program) {
  std::vector<std::string> words = {"sh", "-c", kScript, program.folder.string()};
  words.insert(words.end(), program.arguments.begin(), program.arguments.end());
  ChildCommand command;
  command.has_input = true;
  if (program.reach == HostReach::kSrun) {
    command.arguments = {"srun",      "--mpi=none", "--overlap",       "--quiet",
                         "--nodes=1", "--ntasks=1", "--cpu-bind=none", "--nodelist=" + program.host};
    command.arguments.insert(command.arguments.end(), words.begin(), words.end());
    return command;
  }
  command.arguments = ssh_words(program.ssh);
  // ssh puts its words together for a shell on the other side.
  command.arguments.insert(command.arguments.end(), {program.host, shell_line({words})});
  return command;
}

std::string remote_input(const std::string& token, const std::map<std::string, std::string>& variables) {
  std::string text = token + "\n";
  for (const auto& [name, value] : variables) {
    require(value.find('\n') == std::string::npos, "{}: several lines, which cannot be passed to another host", name);
    text += fmt::format("{}={}\n", name, value);
  }
  return text + "\n";
}

std::string remote_signal(int number) { return fmt::format("{}\n", number); }

}  // namespace lockstep
