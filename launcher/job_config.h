// The file that a training job is started with: a Lockstep configuration, or one of LLaMA-Factory's.
#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/rank_environment.h"
#include "data/pack/pack.h"
#include "trainer/config.h"

namespace lockstep {

struct JobConfig {
  Config config;  // as load_config() gives it
  // Of a LLaMA-Factory file: what is to be packed before training, and what became of each key.
  std::vector<PackOptions> packs;
  std::vector<std::string> notes;
  bool starts_over_on_other_data = false;  // as LlamaFactoryJob has it
};

// Throws Error(kUsage) where there is none.
[[nodiscard]] std::string read_job_config(const std::filesystem::path& path);
// `origin`: the file that `text` came from, which messages name and from which a run without a name has its own.
// `world` is the number of ranks (0: not known yet), `resume` that of `lockstep train`. Throws what parse_config() and
// read_llama_factory() throw.
[[nodiscard]] JobConfig parse_job_config(const std::string& text, const std::filesystem::path& origin,
                                         std::span<const std::string> overrides, int world,
                                         const std::string& resume = "auto");

// `lockstep launch` reads the file once and hands its text to each worker that it starts, in this variable: a file that
// is edited while the job runs changes nothing for workers that are started later. Not in the run's folder, which is
// there only once rank 0 has opened the run.
inline constexpr const char* kConfigVariable = "LOCKSTEP_CONFIG_TEXT";
// Throws Error(kUsage) for a text that is too long for a variable.
[[nodiscard]] std::string to_config_variable(const std::string& text, const std::filesystem::path& origin);
// The text, in a worker of `lockstep launch`. Throws Error(kUsage) for a variable that is not of that form.
[[nodiscard]] std::optional<std::string> launched_config(const EnvironmentLookup& environment);

// RUN/launch.yaml: the text that the run was last launched with, for a Slurm job that is put back into the queue.
[[nodiscard]] std::filesystem::path launched_config_file(const std::filesystem::path& run);

}  // namespace lockstep
