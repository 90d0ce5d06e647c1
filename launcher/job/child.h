// Programs that this one starts: mpirun, srun, ssh, Slurm's commands.
#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace lockstep {

struct ChildCommand {
  std::vector<std::string> arguments;                 // the program first, looked up in PATH
  std::map<std::string, std::string> variables = {};  // added to this process's environment
};

class Child {
 public:
  enum class Stream { kOut, kErr };

  // Starts it in a session of its own, so that a terminal's Ctrl-C does not reach it, with nothing to read. Throws
  // Error(kUsage) when there is no such program, Error(kIo) when it cannot be started.
  explicit Child(const ChildCommand& command);
  // A child that still runs is killed, with its process group.
  ~Child();
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  // Waits up to `timeout_ms` for output, and hands over whole lines without their end.
  void read(int timeout_ms, const std::function<void(Stream, const std::string& line)>& on_line);
  // 128 + its number when a signal ended it, as shells say. Nothing while it runs. Output may still be waiting.
  [[nodiscard]] std::optional<int> exit_code();
  // To the process alone, or to its whole group. Does nothing once it has ended.
  void signal(int number) const;
  void signal_group(int number) const;

 private:
  struct Output {
    int descriptor = -1;
    std::string begun;  // a line whose end has not come
  };
  pid_t process_ = -1;
  std::optional<int> exit_code_;
  std::map<Stream, Output> outputs_;
};

struct ChildResult {
  int exit_code = -1;  // where it was killed
  bool timed_out = false;
  std::string output;  // both streams, the first MiB of them
};
// Runs a program to its end, or kills it after `deadline_ms`. Throws what Child's constructor throws.
[[nodiscard]] ChildResult run_child(const ChildCommand& command, int deadline_ms);

}  // namespace lockstep
