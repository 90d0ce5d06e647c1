// A trained model, or adapters, as a Hugging Face folder: weights in files of a size and in a type of one's choice.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>

#include "trainer/flat_parameters.h"
#include "trainer/formats/safetensors.h"

namespace lockstep {

struct SafetensorsExport {
  std::filesystem::path text_folder;              // whose tokenizer and the like go along
  std::map<std::string, std::string> texts = {};  // instead of files there, by name
  std::string config_name = "config.json";
  std::string config;                                // its text; what it says of the weights' type is replaced
  std::string stem = "model";                        // of the weights' files
  std::map<std::string, std::string> metadata = {};  // of the weights' files, beside the format
  std::string copy = {};                             // a name that a tensor has besides; empty: none
  std::string copied = {};                           // that tensor
  const ParameterLayout& layout;
  std::span<const float> weights;
  SafetensorsType type = SafetensorsType::kF32;  // kF32, kF16 or kBF16
  std::uint64_t shard_bytes = 0;                 // of weights in a file, at most, unless a tensor alone is larger
};
struct SafetensorsSummary {
  std::uint64_t files = 0;
  std::uint64_t bytes = 0;  // of weights
};
// Makes `out`, a folder that is empty or not there yet, whole or not at all. Throws Error(kIo, kNoSpace).
SafetensorsSummary export_safetensors(const SafetensorsExport& source, const std::filesystem::path& out,
                                      const std::function<void(std::size_t done, std::size_t total)>& progress = {});

}  // namespace lockstep
