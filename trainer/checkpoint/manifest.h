// manifest.json: what a checkpoint holds and how to tell that it is whole. docs/checkpoint-format.md specifies it.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "base/hash.h"
#include "trainer/flat_parameters.h"

namespace lockstep {

inline constexpr int kCheckpointVersion = 1;
inline constexpr const char* kManifestName = "manifest.json";
// The file with the trained weights: a whole model's, adapters' as peft calls it, or those of some layers.
inline constexpr const char* kModelFileName = "model.safetensors";
inline constexpr const char* kAdapterFileName = "adapter_model.safetensors";
inline constexpr const char* kPartFileName = "trained.safetensors";

struct CheckpointFile {
  std::string name;
  std::uint64_t bytes = 0;
  Hash128 hash;
};

// One state file: it holds the moments (and, in bf16 and fp16 runs, the master weights) of elements `range` of the flat
// layout.
struct StateShard {
  std::string file;
  ElementRange range;
};

// The types that a model's weights are saved in; with another than f32, state files hold the master weights.
inline constexpr std::array kWeightTypes = {DType::kF32, DType::kBF16, DType::kF16};

// Where a run was: saved as it is, handed back on load.
struct RunPosition {
  std::uint64_t step = 0;
  std::uint64_t samples = 0;  // consumed
  std::uint64_t tokens = 0;   // consumed
  std::uint64_t seed = 0;
  std::optional<double> validation_loss;  // of this step, where it was evaluated: retention may keep the best
  std::string config_text;                // the resolved configuration
  std::string extra_json = "{}";          // a JSON object with whatever else the trainer wants back
};

struct Manifest {
  RunPosition position;
  int world = 1;
  std::string model_file = kModelFileName;
  DType model_dtype = DType::kF32;  // of model_file: one of kWeightTypes
  Hash128 digest;
  ParameterLayout layout;
  std::vector<StateShard> shards;  // in the order of their ranges, covering the flat layout
  std::vector<CheckpointFile> files;
};

// The text of manifest.json. Its last line but one holds the checksum of everything before that line.
[[nodiscard]] std::string manifest_text(const Manifest& manifest);

// The inverse. `file` is what messages call it. Throws Error(kCorrupt) for damaged text and Error(kUnsupported) for a
// format version that this program does not know.
[[nodiscard]] Manifest parse_manifest(std::string_view text, const std::string& file);

// `body` with the line that seals it appended: for tests and tools.
[[nodiscard]] std::string seal_manifest(std::string_view body);

// "step-00000200", and back (nullopt for any other name).
[[nodiscard]] std::string step_folder_name(std::uint64_t step);
[[nodiscard]] std::optional<std::uint64_t> parse_step_folder_name(std::string_view name);
// "state-00001-of-00004.safetensors"
[[nodiscard]] std::string state_file_name(int rank, int world);

}  // namespace lockstep
