#include "base/progress.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <vector>

namespace lockstep {
namespace {

constexpr int kWidestBar = 30;
constexpr int kNarrowestBar = 8;

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// [=====>    ]: `width` characters, brackets included.
std::string draw_bar(double share, int width) {
  const int inside = width - 2;
  const int filled = std::clamp(static_cast<int>(share * inside), 0, inside);
  std::string text(static_cast<std::size_t>(filled), '=');
  if (filled < inside) {
    text += '>';
    text.append(static_cast<std::size_t>(inside - filled - 1), ' ');
  }
  return "[" + text + "]";
}

// Three significant digits, and the largest of `suffixes` (each `base` times the one before) that leaves at least 1.
template <std::size_t N>
std::string scaled(double value, double base, const std::array<const char*, N>& suffixes) {
  std::size_t i = 0;
  while (i + 1 < N && value >= base * (1.0 - 0.0005)) {
    value /= base;
    ++i;
  }
  const int decimals = i == 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return fmt::format("{:.{}f}{}", value, decimals, suffixes[i]);
}

// "1 step", "2 steps", "2 batches".
std::string counted(std::uint64_t count, const std::string& unit) {
  const char* ending = count == 1 ? "" : unit.ends_with("ch") ? "es" : "s";
  return fmt::format("{} {}{}", count, unit, ending);
}

}  // namespace

Progress::Progress(Log& log, ProgressOptions options) : log_(log), options_(std::move(options)) {
  if (!options_.now_s) {
    options_.now_s = steady_seconds;
  }
  start_s_ = options_.now_s();
  last_shown_s_ = start_s_;
}

Progress::~Progress() {
  if (!finished_) {
    log_.clear_status();
  }
}

bool Progress::due(std::uint64_t done) const {
  if (options_.total != 0 && done >= options_.total) {
    return true;
  }
  const double since_s = options_.now_s() - last_shown_s_;
  if (log_.columns() > 0) {
    return !shown_ || since_s >= options_.redraw_interval_s;
  }
  return options_.line_every != 0 ? done % options_.line_every == 0 : since_s >= options_.line_interval_s;
}

void Progress::update(std::uint64_t done, std::span<const std::string> fields) {
  if (!due(done)) {
    return;
  }
  const double now_s = options_.now_s();
  if (const int columns = log_.columns(); columns > 0) {
    log_.set_status(bar(done, fields, now_s, columns - 1));
  } else {
    log_.write(LogLevel::kInfo, line(done, fields, now_s));
  }
  last_shown_s_ = now_s;
  shown_ = true;
}

void Progress::finish(std::uint64_t done, std::span<const std::string> fields) {
  log_.clear_status();
  finished_ = true;
  std::string text = fmt::format("{}: {}", options_.what, counted(done, options_.unit));
  for (const std::string& field : fields) {
    text += ", " + field;
  }
  log_.write(LogLevel::kInfo, text + ", in " + format_duration(options_.now_s() - start_s_));
}

std::optional<double> Progress::seconds_left(std::uint64_t done, double now_s) const {
  if (options_.total == 0 || done <= options_.start || done > options_.total) {
    return std::nullopt;
  }
  const double per_unit_s = (now_s - start_s_) / static_cast<double>(done - options_.start);
  return per_unit_s * static_cast<double>(options_.total - done);
}

// Parts in the order of their worth; what does not fit is left out, and the bar takes the room that is left over.
std::string Progress::bar(std::uint64_t done, std::span<const std::string> fields, double now_s, int columns) const {
  const auto room = static_cast<std::size_t>(columns);
  std::string head = options_.what;
  std::vector<std::string> parts;
  if (options_.total == 0) {
    parts.push_back(counted(done, options_.unit));
  } else {
    head += fmt::format(" {:3}%", 100 * std::min(done, options_.total) / options_.total);
    parts.push_back(fmt::format("{}/{}", done, options_.total));
  }
  std::string left;
  if (const auto seconds = seconds_left(done, now_s)) {
    left = "  " + format_duration(*seconds) + " left";
  }
  parts.insert(parts.end(), fields.begin(), fields.end());

  std::string tail;
  for (const std::string& part : parts) {
    if (head.size() + tail.size() + 2 + part.size() + left.size() > room) {
      break;
    }
    tail += "  " + part;
  }
  if (head.size() + tail.size() + left.size() <= room) {
    tail += left;
  }
  const int spare = columns - static_cast<int>(head.size() + tail.size()) - 2;
  if (options_.total != 0 && spare >= kNarrowestBar) {
    const double share = static_cast<double>(std::min(done, options_.total)) / static_cast<double>(options_.total);
    head += "  " + draw_bar(share, std::min(spare, kWidestBar));
  }
  return head + tail;
}

std::string Progress::line(std::uint64_t done, std::span<const std::string> fields, double now_s) const {
  std::string text = fmt::format("{}: {} {}", options_.what, options_.unit, done);
  if (options_.total != 0) {
    text += fmt::format(" of {} ({}%)", options_.total, 100 * std::min(done, options_.total) / options_.total);
  }
  for (const std::string& field : fields) {
    text += ", " + field;
  }
  if (const auto seconds = seconds_left(done, now_s); seconds && done < options_.total) {
    text += ", " + format_duration(*seconds) + " left";
  }
  return text;
}

std::string format_duration(double seconds) {
  if (!(seconds >= 0)) {
    seconds = 0;
  }
  const auto whole = static_cast<std::uint64_t>(std::min(std::round(seconds), 1e15));
  const std::uint64_t days = whole / 86400;
  const std::uint64_t hours = whole / 3600 % 24;
  const std::uint64_t minutes = whole / 60 % 60;
  if (days > 0) {
    return fmt::format("{}d {:02}:{:02}", days, hours, minutes);
  }
  if (hours > 0) {
    return fmt::format("{}:{:02}:{:02}", hours, minutes, whole % 60);
  }
  return fmt::format("{}:{:02}", minutes, whole % 60);
}

std::string format_count(double value) {
  return scaled(value, 1000.0, std::array<const char*, 5>{"", "k", "M", "G", "T"});
}

std::string format_bytes(std::uint64_t bytes) {
  return scaled(static_cast<double>(bytes), 1024.0,
                std::array<const char*, 6>{" B", " KiB", " MiB", " GiB", " TiB", " PiB"});
}

}  // namespace lockstep
