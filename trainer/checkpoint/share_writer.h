// What one rank writes into step-N.partial, from a snapshot that nobody changes meanwhile.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "trainer/checkpoint/manifest.h"
#include "trainer/flat_parameters.h"

namespace lockstep {

struct CheckpointShare {
  std::uint64_t step = 0;
  int rank = 0;
  int world = 1;
  ElementRange range;
  std::string model_file = kModelFileName;
  DType model_dtype = DType::kF32;
  // Rank 0: the whole flat layout as model_dtype. Empty elsewhere.
  BufferView weights;
  // range.size() elements each; master only where model_dtype is narrower than f32.
  std::span<const float> master;
  std::span<const float> exp_avg;
  std::span<const float> exp_avg_sq;
};

struct WrittenShare {
  CheckpointFile state;
  std::vector<CheckpointFile> others;  // rank 0: model.safetensors and the texts
  Hash128 digest_sum;
};

// Creates the folder if need be, writes, hashes and syncs this rank's files. `before_write` as in HashingFileWriter.
// Throws Error(kIo, kNoSpace) and whatever before_write throws.
[[nodiscard]] WrittenShare write_share(const std::filesystem::path& folder, const ParameterLayout& layout,
                                       const CheckpointShare& share, const std::map<std::string, std::string>& texts,
                                       const std::function<void(std::size_t)>& before_write);

}  // namespace lockstep
