#include "launcher/job/job_output.h"

#include <fmt/format.h>

#include <cstdio>

namespace lockstep {
namespace {

constexpr std::size_t kStarterLinesShown = 20;

}  // namespace

void JobOutput::begin_attempt(const std::string& title, bool several_ranks) {
  logs_.begin_attempt(title);
  starter_lines_.clear();
  several_ranks_ = several_ranks;
}

void JobOutput::of_rank(const OutputLine& line) {
  logs_.write(line);
  if (line.rank < 0) {
    starter_lines_.push_back(line.text);
    if (starter_lines_.size() > kStarterLinesShown) {
      starter_lines_.pop_front();
    }
    return;
  }
  const std::string prefix = fmt::format("[rank {}] ", line.rank);
  const bool has_prefix = !several_ranks_ || line.text.starts_with(prefix);
  const std::string text = (has_prefix ? "" : prefix) + line.text;
  if (line.is_error) {
    log_.write(LogLevel::kInfo, text);
  } else {
    std::fwrite((text + "\n").data(), 1, text.size() + 1, stdout);  // lost where nobody reads it: the job goes on
    std::fflush(stdout);
  }
}

void JobOutput::of_server(int server, const std::string& text) {
  logs_.write_of_server(server, text);
  log_.write(LogLevel::kInfo, fmt::format("[server {}] {}", server, text));
}

void JobOutput::show_starters_lines() {
  for (const std::string& line : starter_lines_) {
    log_.write(LogLevel::kInfo, line);
  }
}

}  // namespace lockstep
