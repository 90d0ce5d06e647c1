#include "trainer/metrics.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "base/error.h"
#include "base/file.h"

namespace lockstep {
namespace {

constexpr std::size_t kMostWaitingBytes = std::size_t{16} << 20;

// The leading part of the file that is wanted: a line cut short by a crash ends it.
std::uintmax_t bytes_to_keep(const std::filesystem::path& path, const MetricsWriter::Kept& wanted) {
  const std::string text = read_file(path);
  std::size_t kept = 0;
  while (kept < text.size()) {
    const std::size_t end = text.find('\n', kept);
    if (end == std::string::npos) {
      break;
    }
    const auto line = nlohmann::json::parse(text.begin() + static_cast<std::ptrdiff_t>(kept),
                                            text.begin() + static_cast<std::ptrdiff_t>(end), nullptr, false);
    if (!line.is_object() || !line.contains("step") || !line["step"].is_number_integer() ||
        line["step"].get<std::int64_t>() > wanted.last_step) {
      break;
    }
    const bool is_given = line.contains("valid_loss") ? !wanted.last_lines.empty() : wanted.has_step_line();
    if (is_given && line["step"].get<std::int64_t>() == wanted.last_step) {
      break;
    }
    if (!wanted.with_evaluation && line["step"].get<std::int64_t>() == wanted.last_step &&
        line.contains("valid_loss")) {
      break;
    }
    kept = end + 1;
  }
  return kept;
}

// As many digits as it takes; JSON has no infinity and no NaN.
std::string number(double value) { return std::isfinite(value) ? fmt::format("{}", value) : "null"; }

// What comes behind the other keys of a line.
std::string keys_of(const std::optional<PreferenceMetrics>& preference) {
  return preference ? fmt::format(R"(, "accuracy": {}, "chosen_reward": {}, "rejected_reward": {}, "margin": {})",
                                  number(preference->accuracy), number(preference->chosen_reward),
                                  number(preference->rejected_reward),
                                  number(preference->chosen_reward - preference->rejected_reward))
                    : "";
}

}  // namespace

std::string line_of(const StepMetrics& m) {
  return fmt::format(
             R"({{"step": {}, "loss": {}, "lr": {}, "grad_norm": {}, "tokens": {}, "tokens_per_s": {}, "step_ms": {}, "data_ms": {}, )"
             R"("comm_ms": {}, "comm_exposed_ms": {}, "checkpoint_ms": {}, "mfu": {}, "world": {}{}{}{}}})",
             m.step, number(m.loss), number(m.lr), number(m.grad_norm), m.tokens, number(m.tokens_per_s),
             number(m.step_ms), number(m.data_ms), number(m.comm_ms), number(m.comm_exposed_ms),
             number(m.checkpoint_ms), number(m.mfu), m.world,
             m.loss_scale ? fmt::format(R"(, "loss_scale": {})", number(*m.loss_scale)) : "", keys_of(m.preference),
             m.staleness ? fmt::format(R"(, "staleness": {})", number(*m.staleness)) : "") +
         '\n';
}

std::string line_of(const EvaluationMetrics& m) {
  const std::string of_tokens =
      m.preference ? std::string()
                   : fmt::format(R"(, "perplexity": {}, "accuracy": {})", number(m.perplexity), number(m.accuracy));
  return fmt::format(R"({{"step": {}, "valid_loss": {}{}, "valid_tokens": {}{}}})", m.step, number(m.valid_loss),
                     of_tokens, m.tokens, keys_of(m.preference)) +
         '\n';
}

bool MetricsWriter::Kept::has_step_line() const {
  const auto first = nlohmann::json::parse(last_lines.substr(0, last_lines.find('\n')), nullptr, false);
  return first.is_object() && !first.contains("valid_loss");
}

MetricsWriter::MetricsWriter(std::filesystem::path path, const Kept& kept) : file_(File::open_or_create(path)) {
  if (std::filesystem::is_regular_file(path)) {
    size_bytes_ = bytes_to_keep(path, kept);
    file_.truncate(size_bytes_);
  }
  if (!kept.last_lines.empty()) {
    file_.write(size_bytes_, std::as_bytes(std::span(kept.last_lines)));
    size_bytes_ += kept.last_lines.size();
  }
}

std::string MetricsWriter::write(const std::string& line) {
  if (waiting_.size() < kMostWaitingBytes) {
    waiting_ += line;
  }
  try {
    file_.write(size_bytes_, std::as_bytes(std::span(waiting_)));
  } catch (const Error& error) {
    return error.what();  // what was written of it is written again
  }
  size_bytes_ += waiting_.size();
  waiting_.clear();
  return {};
}

}  // namespace lockstep
