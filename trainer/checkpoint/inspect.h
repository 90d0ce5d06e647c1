// What `lockstep inspect` says about a checkpoint folder.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "trainer/checkpoint/manifest.h"

namespace lockstep {

struct CheckpointDescription {
  struct FileState {
    CheckpointFile file;
    std::string problem;  // empty: as the manifest says, as far as it was checked
  };

  std::filesystem::path path;
  Manifest manifest;
  std::vector<FileState> files;
  bool verified = false;  // every file was read and matches
  bool intact = true;     // no file has a problem
};

enum class InspectDepth {
  kSizes,     // reads the manifest and the sizes of the files
  kContents,  // reads every file and recomputes the digest from the tensors
};

// Throws Error(kUsage) when `path` is not a checkpoint folder, Error(kCorrupt) when its manifest is damaged. Damaged
// files are described, not thrown; a digest that differs is described as a problem of manifest.json.
[[nodiscard]] CheckpointDescription describe_checkpoint(const std::filesystem::path& path, InspectDepth depth);

// The digest computed anew from the tensors of a checkpoint. Throws Error(kCorrupt, kIo).
[[nodiscard]] Hash128 recompute_digest(const std::filesystem::path& path);

}  // namespace lockstep
