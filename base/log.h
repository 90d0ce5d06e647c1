// Lines for the person who watches a run, and the one line at the bottom of a terminal that is redrawn in place.
//
// A Log is made by the command line and passed down. All member functions may be called from any thread; a line is
// written whole. Nothing here throws: a log that cannot be written is not a reason to lose a run.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <cstdio>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

namespace lockstep {

enum class LogLevel : std::uint8_t { kDebug, kInfo, kWarning, kError };

// "debug", "info", "warning", "error".
[[nodiscard]] std::string_view name_of(LogLevel level);

struct LogOptions {
  int rank = 0;
  int world_size = 1;
  // Lines below it are dropped. Ranks other than 0 also drop kInfo and kDebug unless all_ranks is set: what every rank
  // would say, rank 0 says. Warnings and errors come from every rank and name it.
  LogLevel level = LogLevel::kInfo;
  bool all_ranks = false;
  std::FILE* stream = stderr;  // not owned
  // Width of the terminal that `stream` ends on, 0 when it ends elsewhere; asked again at each redraw. Empty: 0.
  std::function<int()> columns = {};
};

class Log {
 public:
  explicit Log(LogOptions options);
  // Erases the status line.
  ~Log();
  Log(const Log&) = delete;
  Log& operator=(const Log&) = delete;

  template <typename... Args>
  void debug(fmt::format_string<Args...> format, Args&&... args) {
    write_formatted(LogLevel::kDebug, format, std::forward<Args>(args)...);
  }
  template <typename... Args>
  void info(fmt::format_string<Args...> format, Args&&... args) {
    write_formatted(LogLevel::kInfo, format, std::forward<Args>(args)...);
  }
  template <typename... Args>
  void warning(fmt::format_string<Args...> format, Args&&... args) {
    write_formatted(LogLevel::kWarning, format, std::forward<Args>(args)...);
  }
  template <typename... Args>
  void error(fmt::format_string<Args...> format, Args&&... args) {
    write_formatted(LogLevel::kError, format, std::forward<Args>(args)...);
  }

  // For a rank that is known only after the Log was made. Before other threads use it.
  void set_rank(int rank, int world_size) {
    options_.rank = rank;
    options_.world_size = world_size;
  }
  [[nodiscard]] bool prints(LogLevel level) const;
  // "warning: text", behind "[rank 3] " in jobs of several ranks for what is not said by rank 0 alone.
  void write(LogLevel level, std::string_view text);

  // Shows `line` (one line, cut to the terminal's width) below all other lines until it is replaced or cleared. Does
  // nothing where there is no terminal.
  void set_status(std::string line);
  void clear_status();
  // 0: no terminal, or a rank that does not draw.
  [[nodiscard]] int columns() const;

 private:
  template <typename... Args>
  void write_formatted(LogLevel level, fmt::format_string<Args...> format, Args&&... args) {
    if (prints(level)) {
      write(level, fmt::format(format, std::forward<Args>(args)...));
    }
  }
  void draw_status();
  void erase_status();

  LogOptions options_;
  std::mutex mutex_;
  std::string status_;
  bool status_drawn_ = false;
};

}  // namespace lockstep
