// Programs that this one starts: mpirun, srun, ssh, Slurm's commands, ranks and servers themselves.
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
  bool has_input = false;                             // write() is what it reads; otherwise it reads nothing
  // Writing to a pipe whose reader is gone is an error there, and not its end: for what is to outlive this process.
  bool outlives_reader = false;
};

class Child {
 public:
  enum class Stream { kOut, kErr };
  using LineHandler = std::function<void(Stream, const std::string& line)>;

  // Starts it in a session of its own, so that a terminal's Ctrl-C does not reach it, and with none of this process's
  // files. Throws Error(kUsage) when there is no such program, Error(kIo) when it cannot be started.
  explicit Child(const ChildCommand& command);
  // A child that still runs is killed, with its process group.
  ~Child();
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  // Waits up to `timeout_ms` for output, and hands over whole lines without their end.
  void read(int timeout_ms, const LineHandler& on_line);
  // Waits up to `timeout_ms` for output of any of them.
  static void wait_for_output(const std::vector<const Child*>& children, int timeout_ms);
  // For a child with input: some lines, which must not be more than a pipe holds. Lost when it reads no more.
  void write(const std::string& text) const;
  // 128 + its number when a signal ended it, as shells say. Nothing while it runs. Output may still be waiting.
  [[nodiscard]] std::optional<int> exit_code();
  // To the process alone, or to its whole group. Does nothing once it has ended.
  void signal(int number) const;
  void signal_group(int number) const;

 private:
  void close_all();

  struct Output {
    int descriptor = -1;
    std::string begun;  // a line whose end has not come
  };
  pid_t process_ = -1;
  int input_ = -1;
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
