// Which checkpoints of a run stay. Removing begins with a rename, so that no half-removed folder looks like a
// checkpoint.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace lockstep {

struct CheckpointFolder {
  std::uint64_t step = 0;
  std::filesystem::path path;
};

// The folders named step-N, newest first; empty when `folder` does not exist. Throws Error(kIo).
[[nodiscard]] std::vector<CheckpointFolder> list_checkpoints(const std::filesystem::path& folder);

struct Retention {
  int keep = 3;            // newest checkpoints that stay, at least 1
  bool keep_best = false;  // the one with the lowest validation loss stays as well
};

// Removes the checkpoints that `retention` does not keep. One whose manifest is damaged or whose files are missing or
// cut short is not counted, and removed once newer good ones make up the number. Also removes what supersede_newer()
// set aside. Removes nothing when no checkpoint is good. Throws Error(kIo).
void apply_retention(const std::filesystem::path& folder, const Retention& retention);

// Removes what a killed process left half-written or half-removed, and puts back a checkpoint that it was about to
// replace. Rank 0 calls it at start, before anything looks for checkpoints and before any save begins. Throws
// Error(kIo).
void clean_leftovers(const std::filesystem::path& folder);

// The last part of clean_leftovers() alone.
void put_back_replaced(const std::filesystem::path& folder);

// Sets checkpoints after `step` aside (step-N.superseded) because the run goes on from an earlier one, so that a later
// resume does not take them for its own future. They are removed once a new checkpoint is published. Returns how many.
// Throws Error(kIo).
int supersede_newer(const std::filesystem::path& folder, std::uint64_t step);

}  // namespace lockstep
