// Weights out of Hugging Face safetensors: one model.safetensors, or shards with model.safetensors.index.json.
#pragma once

#include <filesystem>
#include <span>
#include <vector>

#include "trainer/flat_parameters.h"

namespace lockstep {

// The files that hold the weights of a folder, in the order of their names; none where there is no model. Throws
// Error(kCorrupt) for an index that is damaged.
[[nodiscard]] std::vector<std::filesystem::path> hf_weight_files(const std::filesystem::path& folder);

// Fills `weights` (layout.total() elements; padding is set to zero) from `path`: a folder with model.safetensors or
// model.safetensors.index.json, or one .safetensors file. F32, F16 and BF16 convert exactly, F64 is rounded. Tensors
// that the layout does not name (a tied head, mask buffers) are ignored. Where a name is missing, it is tried once more
// without its first component: files saved from the bare model lack "transformer." or "model.". Throws Error(kUsage)
// naming the tensor that is missing or has another shape; Error(kCorrupt, kIo) for damaged files.
void load_hf_weights(const std::filesystem::path& path, const ParameterLayout& layout, std::span<float> weights);

}  // namespace lockstep
