#include "launcher/terminal.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <string>

#include "base/error.h"

namespace lockstep {
namespace {

constexpr int kUsualColumns = 80;

// A file descriptor that is closed unless it is stderr.
class TerminalDescriptor {
 public:
  explicit TerminalDescriptor(int descriptor) : descriptor_(descriptor) {}
  ~TerminalDescriptor() {
    if (descriptor_ > STDERR_FILENO) {
      ::close(descriptor_);
    }
  }
  TerminalDescriptor(const TerminalDescriptor&) = delete;
  TerminalDescriptor& operator=(const TerminalDescriptor&) = delete;

  [[nodiscard]] bool is_terminal() const { return descriptor_ >= 0 && isatty(descriptor_) == 1; }
  [[nodiscard]] int columns() const {
    winsize size = {};
    if (descriptor_ < 0 || ioctl(descriptor_, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) {
      return kUsualColumns;
    }
    return size.ws_col;
  }

 private:
  int descriptor_;
};

int open_stderr_of_parent() {
  const std::string path = "/proc/" + std::to_string(getppid()) + "/fd/2";
  return ::open(path.c_str(), O_WRONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
}

}  // namespace

std::function<int()> terminal_columns(const EnvironmentLookup& environment, Starter starter) {
  const std::string progress = environment("LOCKSTEP_PROGRESS").value_or("auto");
  require(progress == "auto" || progress == "bar" || progress == "lines",
          "LOCKSTEP_PROGRESS is {}; expected auto, bar or lines", progress);
  if (progress == "lines" || (progress == "auto" && environment("TERM").value_or("dumb") == "dumb")) {
    return [] { return 0; };
  }
  const bool behind_launcher = starter == Starter::kMpirun && isatty(STDERR_FILENO) == 0;
  const auto terminal = std::make_shared<TerminalDescriptor>(behind_launcher ? open_stderr_of_parent() : STDERR_FILENO);
  if (progress == "auto" && !terminal->is_terminal()) {
    return [] { return 0; };
  }
  return [terminal] { return terminal->columns(); };
}

}  // namespace lockstep
