// Programs run by tests, with what they printed.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace lockstep {

struct ProcessResult {
  int exit_code = -1;  // -1: ended by a signal
  int signal = 0;
  std::string out;
  std::string err;
};

// A program that runs with empty stdin, its output collected in two files. Ended by SIGKILL when it is still running in
// the destructor.
class Process {
 public:
  // `environment` ("NAME=value") is laid over this process's own. Throws std::runtime_error when it cannot be started.
  explicit Process(const std::vector<std::string>& command, const std::vector<std::string>& environment = {});
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  [[nodiscard]] pid_t pid() const { return pid_; }
  void send(int signal) const;
  [[nodiscard]] bool is_running();
  // What it printed so far.
  [[nodiscard]] std::string out() const;
  [[nodiscard]] std::string err() const;
  // Waits for its end; kills it after `timeout_s` (its signal is SIGKILL then).
  ProcessResult wait(double timeout_s = 60);

 private:
  std::string folder_;
  pid_t pid_ = -1;
  int status_ = 0;
};

// Runs it to its end.
[[nodiscard]] ProcessResult run_process(const std::vector<std::string>& command,
                                        const std::vector<std::string>& environment = {});

}  // namespace lockstep
