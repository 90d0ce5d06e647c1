// The tensors of a checkpoint, seen as flat state again.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "trainer/checkpoint/digest.h"
#include "trainer/checkpoint/manifest.h"
#include "trainer/formats/safetensors.h"

namespace lockstep {

class StateFiles {
 public:
  // Opens the files that the manifest names and checks that each holds the tensors it must. `manifest` must outlive
  // this. Throws Error(kCorrupt, kIo).
  StateFiles(const std::filesystem::path& folder, const Manifest& manifest);

  // Reads elements [first, first + values.size()) of parameter `index` of the manifest's layout.
  void read(StateKind kind, std::size_t index, std::uint64_t first, std::span<float> values) const;

 private:
  void read_weights(std::size_t index, std::uint64_t first, std::span<float> values) const;

  const Manifest& manifest_;
  SafetensorsFile model_;
  std::vector<std::unique_ptr<SafetensorsFile>> shards_;  // as manifest_.shards
};

// "master", "exp_avg", "exp_avg_sq": the tensors of a state file.
[[nodiscard]] const char* state_tensor_name(StateKind kind);

}  // namespace lockstep
