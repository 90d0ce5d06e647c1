// The files and folders of a checkpoint, one step at a time: what reader, writer, retention and inspect share.
#pragma once

#include <filesystem>
#include <string>

#include "trainer/checkpoint/manifest.h"

namespace lockstep {

// Throws Error(kCorrupt) naming the folder when manifest.json is missing or damaged.
[[nodiscard]] Manifest read_manifest(const std::filesystem::path& folder);

enum class FileCheck { kSize, kContents };

// What is wrong with a file of a checkpoint, in one line that begins with the file's name; empty when nothing is.
[[nodiscard]] std::string problem_with(const std::filesystem::path& folder, const CheckpointFile& file,
                                       FileCheck check);

// The first problem among all files that the manifest names; empty when there is none.
[[nodiscard]] std::string first_problem(const std::filesystem::path& folder, const Manifest& manifest, FileCheck check);

// Makes `partial` visible as `target`, replacing a folder of that name. A crash in between leaves either the old or the
// new one, or the old one under a name that put_back_replaced() turns back.
void publish_folder(const std::filesystem::path& partial, const std::filesystem::path& target);
// What follows, and cannot undo it: syncs the folder above and removes what was replaced.
void finish_publishing(const std::filesystem::path& partial, const std::filesystem::path& target);

// Renames, then removes: a half-removed folder does not look like a checkpoint.
void remove_checkpoint(const std::filesystem::path& folder);

inline constexpr const char* kPartialSuffix = ".partial";
inline constexpr const char* kDeletingSuffix = ".deleting";
inline constexpr const char* kReplacedSuffix = ".replaced";
inline constexpr const char* kSupersededSuffix = ".superseded";

[[nodiscard]] std::filesystem::path with_suffix(std::filesystem::path path, const char* suffix);

}  // namespace lockstep
