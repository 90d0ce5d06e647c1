// Weights out of Hugging Face safetensors: one model.safetensors, or shards with model.safetensors.index.json.
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "trainer/flat_parameters.h"

namespace lockstep {

// The files that hold the weights of a folder, in the order of their names; none where there is no model. Throws
// Error(kCorrupt) for an index that is damaged.
[[nodiscard]] std::vector<std::filesystem::path> hf_weight_files(const std::filesystem::path& folder);

// The tensors of `path`: a folder with model.safetensors or model.safetensors.index.json, or one .safetensors file.
// F32, F16 and BF16 convert exactly, F64 is rounded. Tensors that nobody asks for (a tied head, mask buffers) are
// ignored. Where a name is missing, it is tried once more without its first component: files saved from the bare model
// lack "transformer." or "model.".
class HfWeights {
 public:
  // Throws Error(kUsage) when there is no such file, Error(kCorrupt, kIo) for damaged ones.
  explicit HfWeights(const std::filesystem::path& path);
  ~HfWeights();
  HfWeights(const HfWeights&) = delete;
  HfWeights& operator=(const HfWeights&) = delete;

  // Throws Error(kUsage) naming the first tensor of the layout that is missing or has another shape.
  void check(const ParameterLayout& layout) const;
  // Throws Error(kUsage) naming the first tensor that the layout has no use for, but for one called `known`.
  void check_nothing_else(const ParameterLayout& layout, std::string_view known) const;
  // The values of one parameter of a layout that was checked.
  void read(const ParameterSpec& spec, std::span<float> values) const;
  // Those of all: layout.total() elements, padding is set to zero.
  void read_all(const ParameterLayout& layout, std::span<float> weights) const;

 private:
  class TensorSource;
  std::unique_ptr<TensorSource> source_;
};

// Fills `weights` (layout.total() elements; padding is set to zero) from `path`, or nothing when HfWeights throws.
void load_hf_weights(const std::filesystem::path& path, const ParameterLayout& layout, std::span<float> weights);

}  // namespace lockstep
