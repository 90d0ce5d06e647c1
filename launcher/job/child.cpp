#include "launcher/job/child.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>

#include "base/error.h"

extern char** environ;

namespace lockstep {
namespace {

constexpr std::size_t kLongestLine = 1 << 20;  // more is cut into several
constexpr std::size_t kMostOutput = 1 << 20;

struct Pipe {
  Pipe() {
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
      fail_errno("a pipe");
    }
    read_end = ends[0];
    write_end = ends[1];
  }
  int read_end = -1;
  int write_end = -1;
};

std::vector<std::string> environment_with(const std::map<std::string, std::string>& variables) {
  std::vector<std::string> all;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    if (!variables.contains(text.substr(0, text.find('=')))) {
      all.push_back(text);
    }
  }
  for (const auto& [name, value] : variables) {
    all.push_back(name + "=" + value);
  }
  return all;
}

std::vector<char*> pointers_to(std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (std::string& text : texts) {
    pointers.push_back(text.data());
  }
  pointers.push_back(nullptr);
  return pointers;
}

}  // namespace

Child::Child(const ChildCommand& command) {
  // A socket can be written to without the signal that a pipe without a reader sends.
  std::array<int, 2> input = {-1, -1};
  if (command.has_input && ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, input.data()) != 0) {
    fail_errno("a socket");
  }
  const Pipe out;
  const Pipe err;
  input_ = input[0];
  outputs_[Stream::kOut].descriptor = out.read_end;
  outputs_[Stream::kErr].descriptor = err.read_end;
  for (const auto& [stream, output] : outputs_) {
    ::fcntl(output.descriptor, F_SETFL, O_NONBLOCK);
  }
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  if (command.has_input) {
    posix_spawn_file_actions_adddup2(&files, input[1], STDIN_FILENO);
  } else {
    posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  }
  posix_spawn_file_actions_adddup2(&files, out.write_end, STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&files, err.write_end, STDERR_FILENO);
  // A port that this process listens on is not to seem to live on in those that it has started.
  posix_spawn_file_actions_addclosefrom_np(&files, STDERR_FILENO + 1);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  // Signals as a shell would hand them on, whatever this process does about them.
  sigset_t none;
  sigset_t all;
  sigemptyset(&none);
  sigfillset(&all);
  if (command.outlives_reader) {
    sigdelset(&all, SIGPIPE);  // ignored by this process, and so by that one
  }
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);

  std::vector<std::string> arguments = command.arguments;
  std::vector<std::string> variables = environment_with(command.variables);
  const int error = ::posix_spawnp(&process_, arguments.front().c_str(), &files, &attributes,
                                   pointers_to(arguments).data(), pointers_to(variables).data());
  posix_spawn_file_actions_destroy(&files);
  posix_spawnattr_destroy(&attributes);
  ::close(out.write_end);
  ::close(err.write_end);
  if (input[1] >= 0) {
    ::close(input[1]);
  }
  if (error != 0) {
    close_all();
    require(error != ENOENT, "{}: no such program in PATH", arguments.front());
    errno = error;
    fail_errno("start " + arguments.front());
  }
}

Child::~Child() {
  if (!exit_code()) {
    signal_group(SIGKILL);
    ::waitpid(process_, nullptr, 0);
  }
  close_all();
}

void Child::close_all() {
  for (const auto& [stream, output] : outputs_) {
    if (output.descriptor >= 0) {
      ::close(output.descriptor);
    }
  }
  if (input_ >= 0) {
    ::close(input_);
  }
}

void Child::wait_for_output(const std::vector<const Child*>& children, int timeout_ms) {
  std::vector<pollfd> events;
  for (const Child* child : children) {
    for (const auto& [stream, output] : child->outputs_) {
      events.push_back({output.descriptor, POLLIN, 0});  // poll() skips closed ones, which are -1
    }
  }
  ::poll(events.data(), events.size(), timeout_ms);
}

void Child::write(const std::string& text) const {
  static_cast<void>(::send(input_, text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT));
}

void Child::read(int timeout_ms, const LineHandler& on_line) {
  wait_for_output({this}, timeout_ms);
  std::array<char, 65536> bytes;
  constexpr int kMostBlocks = 64;  // then whoever called has other things to see to
  for (auto& [stream, output] : outputs_) {
    for (int block = 0; block < kMostBlocks && output.descriptor >= 0; ++block) {
      const ssize_t count = ::read(output.descriptor, bytes.data(), bytes.size());
      if (count < 0) {
        break;  // nothing more for now
      }
      output.begun.append(bytes.data(), static_cast<std::size_t>(count));
      if (count == 0) {
        ::close(output.descriptor);
        output.descriptor = -1;
        if (!output.begun.empty()) {
          output.begun += '\n';
        }
      }
      std::size_t begin = 0;
      for (std::size_t end = output.begun.find('\n'); end != std::string::npos; end = output.begun.find('\n', begin)) {
        on_line(stream, output.begun.substr(begin, end - begin));
        begin = end + 1;
      }
      output.begun.erase(0, begin);
      if (output.begun.size() > kLongestLine) {
        on_line(stream, output.begun);
        output.begun.clear();
      }
    }
  }
}

std::optional<int> Child::exit_code() {
  int status = 0;
  if (!exit_code_ && ::waitpid(process_, &status, WNOHANG) == process_) {
    exit_code_ = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  }
  return exit_code_;
}

void Child::signal(int number) const {
  if (!exit_code_) {
    ::kill(process_, number);
  }
}

void Child::signal_group(int number) const {
  if (!exit_code_) {
    ::kill(-process_, number);
  }
}

ChildResult run_child(const ChildCommand& command, int deadline_ms) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(deadline_ms);
  Child child(command);
  ChildResult result;
  const auto collect = [&](Child::Stream, const std::string& line) {
    if (result.output.size() < kMostOutput) {
      result.output += line + "\n";
    }
  };
  while (!child.exit_code()) {
    if (std::chrono::steady_clock::now() >= deadline) {
      result.timed_out = true;
      return result;
    }
    child.read(10, collect);
  }
  child.read(0, collect);
  result.exit_code = *child.exit_code();
  return result;
}

}  // namespace lockstep
