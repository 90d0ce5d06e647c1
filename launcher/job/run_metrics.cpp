#include "launcher/job/run_metrics.h"

#include <algorithm>
#include <span>
#include <sstream>
#include <string>

#include "base/file.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr std::uint64_t kTailBytes = 64 << 10;

// Numbers that are none are written as null.
bool has_measure(const Json& line, const char* key) {
  const auto found = line.find(key);
  return found != line.end() && (found->is_number() || found->is_null());
}

bool is_of_a_run(const Json& line) {
  if (!line.is_object()) {
    return false;
  }
  const auto step = line.find("step");
  return step != line.end() && step->is_number_integer();
}

}  // namespace

fs::path metrics_file(const fs::path& run) { return run / "metrics.jsonl"; }

LastMetrics read_last_metrics(const fs::path& run) {
  LastMetrics last;
  std::error_code error;
  if (!fs::is_regular_file(metrics_file(run), error)) {
    return last;
  }
  const File file = File::open_to_read(metrics_file(run));
  const std::uint64_t size = file.size();
  std::string tail(std::min(size, kTailBytes), '\0');
  tail.resize(file.read_some(size - tail.size(), std::as_writable_bytes(std::span(tail))));
  std::istringstream lines(tail);
  for (std::string text; std::getline(lines, text);) {
    Json line = Json::parse(text, nullptr, false);
    if (!is_of_a_run(line)) {
      continue;
    }
    if (has_measure(line, "loss")) {
      last.step = std::move(line);
    } else if (has_measure(line, "valid_loss")) {
      last.evaluation = std::move(line);
    }
  }
  return last;
}

std::optional<fs::file_time_type> metrics_time(const fs::path& run) {
  std::error_code error;
  const fs::file_time_type time = fs::last_write_time(metrics_file(run), error);
  return error ? std::nullopt : std::optional(time);
}

}  // namespace lockstep
