// A trained model as a Hugging Face folder, its weights in files of a size and in a type of one's choice.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>

#include "trainer/flat_parameters.h"
#include "trainer/formats/safetensors.h"

namespace lockstep {

struct SafetensorsExport {
  std::filesystem::path model;  // the folder whose config.json, tokenizer and the like go along
  const ParameterLayout& layout;
  std::span<const float> weights;
  SafetensorsType type = SafetensorsType::kF32;  // kF32, kF16 or kBF16
  std::uint64_t shard_bytes = 0;                 // of weights in a file, at most, unless a tensor alone is larger
};
struct SafetensorsSummary {
  std::uint64_t files = 0;
  std::uint64_t bytes = 0;  // of weights
};
// Fills `out`, a folder that is empty or not there yet; config.json comes last, so that a folder without one is no
// model. Throws Error(kIo, kNoSpace).
SafetensorsSummary export_safetensors(const SafetensorsExport& source, const std::filesystem::path& out,
                                      const std::function<void(std::size_t done, std::size_t total)>& progress = {});

}  // namespace lockstep
