// Finds, verifies and loads checkpoints.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>

#include "trainer/checkpoint/manifest.h"
#include "trainer/flat_parameters.h"

namespace lockstep {

// A verified checkpoint: manifest.json and every file it names are what saving wrote. Safe to share between threads.
class CheckpointReader {
 public:
  enum class Verify { kEverything, kManifestOnly };

  // Throws Error(kCorrupt) naming the file and what is wrong with it (missing, cut short, altered), Error(kUnsupported)
  // for a newer format version. kManifestOnly is for ranks whose rank 0 verified the same folder already.
  explicit CheckpointReader(std::filesystem::path path, Verify verify = Verify::kEverything);

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  [[nodiscard]] const Manifest& manifest() const { return manifest_; }

  // Each buffer takes `range` of the flat layout, range.size() elements; an empty span is not loaded.
  struct Destination {
    ElementRange range;  // borders are multiples of ParameterLayout::kAlignment
    std::span<float> master;
    std::span<float> exp_avg;
    std::span<float> exp_avg_sq;
  };
  // Parameters are found by name: the layout's order and the number of state files need not be those of the save.
  // Padding is set to zero. Throws Error(kUsage) naming the first parameter that differs, with both shapes.
  void load(const ParameterLayout& layout, const Destination& destination) const;

 private:
  std::filesystem::path path_;
  Manifest manifest_;
};

struct DamagedCheckpoint {
  std::filesystem::path path;
  std::string reason;
};

// The newest intact checkpoint in runs/NAME/checkpoints; nullopt when there is none at all. Each damaged one on the way
// is given to `on_damaged`. Throws Error(kCorrupt) when there are checkpoints but none is intact: starting over
// silently would lose the run. Throws Error(kUnsupported) for a newer format version.
[[nodiscard]] std::optional<CheckpointReader> find_latest_checkpoint(
    const std::filesystem::path& folder, const std::function<void(const DamagedCheckpoint&)>& on_damaged);

// Checks the file with the weights of a checkpoint folder against its manifest; does nothing for other folders. Throws
// Error(kCorrupt).
void verify_weights(const std::filesystem::path& path);

// Reads one parameter of the layout that it was opened for; values.size() is the parameter's.
using ParameterReader = std::function<void(const ParameterSpec& spec, std::span<float> values)>;
// Weights only, for generate and eval: from a checkpoint folder (its model.safetensors is verified first), a Hugging
// Face folder, a .safetensors file, or a GGUF file, whose tensors all have to be the layout's. See HfWeights and
// GgufModel. Throws Error(kUsage) naming the first tensor that is missing or has another shape, before any is read.
[[nodiscard]] ParameterReader open_weights(const std::filesystem::path& path, const ParameterLayout& layout);
// All of them; padding is set to zero, and nothing is changed when open_weights() throws.
void load_weights(const std::filesystem::path& path, const ParameterLayout& layout, std::span<float> weights);

}  // namespace lockstep
