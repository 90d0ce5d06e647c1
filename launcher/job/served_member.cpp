#include "launcher/job/served_member.h"

#include <fmt/format.h>

#include <charconv>
#include <utility>

#include "launcher/commands/command.h"

namespace lockstep {
namespace {

constexpr int kSshFailed = 255;

// Of "HOST:PORT", as lockstep serve prints it; 0 of anything else.
int port_of(const std::string& text) {
  const std::size_t colon = text.rfind(':');
  int port = 0;
  const char* const end = text.data() + text.size();
  if (colon == std::string::npos || std::from_chars(text.data() + colon + 1, end, port).ptr != end) {
    return 0;
  }
  return port;
}

}  // namespace

void ServedMember::start(const JobSurroundings& job, const std::vector<std::string>& arguments,
                         std::map<std::string, std::string> variables, std::int64_t step) {
  started_at = Clock::now();
  step_at_start = step;
  ended_at.reset();
  to_be_killed.reset();
  has_left = false;
  last_line.clear();
  process = std::make_unique<JobProcess>(job, host, arguments, std::move(variables));
}

void ServedMember::follow(JobOutput& output) {
  if (!process) {
    return;
  }
  const auto now = Clock::now();
  const std::optional<int> code = process->exit_code();  // before the last that it wrote is read
  process->child().read(0, [&](Child::Stream stream, const std::string& text) { hand_on(output, stream, text); });
  if (to_be_killed && now >= *to_be_killed) {
    process->kill();
  }
  if (code) {
    process.reset();
    ended_at = now;
    exit_code = *code;
    is_done = *code == kExitDone || (!is_server && *code == kExitRequeue);
  }
}

void ServedMember::hand_on(JobOutput& output, Child::Stream stream, const std::string& text) {
  const bool is_error = stream == Child::Stream::kErr;
  last_line = is_error ? text : last_line;
  if (!is_server) {
    output.of_rank({number, is_error, text});
  } else if (is_error) {
    output.of_server(number + 1, text);
  } else if (port == 0) {
    port = port_of(text);
  }
}

std::string ServedMember::address() const { return fmt::format("{}:{}", host.empty() ? "127.0.0.1" : host, port); }

std::string ServedMember::end_text() const {
  const std::string said = last_line.empty() ? "" : ": " + last_line;
  if (exit_code == kSshFailed) {
    return fmt::format("{} is gone, or the connection to it broke{}", name_and_host(), said);
  }
  return was_ended() ? fmt::format("{} was ended by signal {}", name_and_host(), exit_code - 128)
                     : fmt::format("{} ended with exit code {}{}", name_and_host(), exit_code, said);
}

}  // namespace lockstep
