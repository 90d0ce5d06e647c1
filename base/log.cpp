#include "base/log.h"

#include <algorithm>

namespace lockstep {
namespace {

// Return to the first column and erase to the end of the line.
constexpr std::string_view kEraseLine = "\r\x1b[K";

void put(std::FILE* stream, std::string_view text) { std::fwrite(text.data(), 1, text.size(), stream); }

}  // namespace

std::string_view name_of(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kError:
      return "error";
  }
  return "";
}

Log::Log(LogOptions options) : options_(std::move(options)) {}

Log::~Log() { clear_status(); }

bool Log::prints(LogLevel level) const {
  const bool everyone = options_.all_ranks || level >= LogLevel::kWarning;
  return level >= options_.level && (options_.rank == 0 || everyone);
}

void Log::write(LogLevel level, std::string_view text) {
  if (!prints(level)) {
    return;
  }
  const bool names_rank = options_.world_size > 1 && (options_.all_ranks || level >= LogLevel::kWarning);
  const std::string rank = names_rank ? fmt::format("[rank {}] ", options_.rank) : "";
  const std::string label = level == LogLevel::kInfo ? "" : fmt::format("{}: ", name_of(level));
  const std::string line = fmt::format("{}{}{}\n", rank, label, text);
  const std::lock_guard lock(mutex_);
  erase_status();
  put(options_.stream, line);
  draw_status();
  std::fflush(options_.stream);
}

void Log::set_status(std::string line) {
  const std::lock_guard lock(mutex_);
  status_ = std::move(line);
  draw_status();
  std::fflush(options_.stream);
}

void Log::clear_status() {
  const std::lock_guard lock(mutex_);
  erase_status();
  status_.clear();
  std::fflush(options_.stream);
}

int Log::columns() const { return options_.rank == 0 && options_.columns ? options_.columns() : 0; }

void Log::draw_status() {
  const int width = columns();
  if (status_.empty() || width <= 1) {
    return;
  }
  // The last column stays free: writing into it makes some terminals start a new line.
  const std::size_t shown = std::min(status_.size(), static_cast<std::size_t>(width - 1));
  put(options_.stream, kEraseLine);
  put(options_.stream, std::string_view(status_).substr(0, shown));
  status_drawn_ = true;
}

void Log::erase_status() {
  if (status_drawn_) {
    put(options_.stream, kEraseLine);
    status_drawn_ = false;
  }
}

}  // namespace lockstep
