// The file that a training job is started with: a Lockstep configuration, or one of LLaMA-Factory's.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

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

// `world` is the number of ranks (0: not known yet), `resume` that of `lockstep train`. Throws what load_config() and
// read_llama_factory() throw.
[[nodiscard]] JobConfig load_job_config(const std::filesystem::path& path, std::span<const std::string> overrides,
                                        int world, const std::string& resume = "auto");

}  // namespace lockstep
