// The newest lines of RUN/metrics.jsonl, as others than the job that writes them read them. Its form:
// trainer/metrics.h.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

namespace lockstep {

struct LastMetrics {
  nlohmann::ordered_json step;        // the newest line of a step: has an integer "step", and "loss", a number or null
  nlohmann::ordered_json evaluation;  // that of an evaluation, with "valid_loss" instead; null where there is none
};

[[nodiscard]] std::filesystem::path metrics_file(const std::filesystem::path& run);
// Lines that are none of a run's are skipped. Throws Error(kIo) for a file that cannot be read.
[[nodiscard]] LastMetrics read_last_metrics(const std::filesystem::path& run);
// When the file was last written, by its file system's clock; nothing where there is none.
[[nodiscard]] std::optional<std::filesystem::file_time_type> metrics_time(const std::filesystem::path& run);

}  // namespace lockstep
