// A trained model, or adapters, as a Hugging Face folder: weights in files of a size and in a type of one's choice.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>

#include "trainer/flat_parameters.h"
#include "trainer/formats/safetensors.h"

namespace lockstep {

struct SafetensorsExport {
  std::filesystem::path text_folder;  // whose tokenizer and the like go along
  std::string config_name = "config.json";
  std::string config;          // its text; what it says of the weights' type is replaced
  std::string stem = "model";  // of the weights' files
  const ParameterLayout& layout;
  std::span<const float> weights;
  SafetensorsType type = SafetensorsType::kF32;  // kF32, kF16 or kBF16
  std::uint64_t shard_bytes = 0;                 // of weights in a file, at most, unless a tensor alone is larger
};
struct SafetensorsSummary {
  std::uint64_t files = 0;
  std::uint64_t bytes = 0;  // of weights
};
// Fills `out`, a folder that is empty or not there yet; the config comes last, so that a folder without one is no
// model. Throws Error(kIo, kNoSpace).
SafetensorsSummary export_safetensors(const SafetensorsExport& source, const std::filesystem::path& out,
                                      const std::function<void(std::size_t done, std::size_t total)>& progress = {});

}  // namespace lockstep
