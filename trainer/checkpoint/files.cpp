#include "trainer/checkpoint/files.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <cstdio>
#include <system_error>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"

namespace lockstep {

namespace fs = std::filesystem;

namespace {

void rename_checked(const fs::path& from, const fs::path& to) {
  if (std::rename(from.c_str(), to.c_str()) != 0) {
    fail_errno(fmt::format("rename {} to {}", from.string(), to.string()));
  }
}

// Swaps two folders' names in one step. Returns false where the file system cannot (NFS, for one).
bool exchange(const fs::path& a, const fs::path& b) {
  return ::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0;
}

void remove_checked(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) {
    fail(ErrorCode::kIo, "remove {}: {}", path.string(), error.message());
  }
}

}  // namespace

Manifest read_manifest(const fs::path& folder) {
  const fs::path path = folder / kManifestName;
  std::error_code error;
  if (!fs::exists(path, error)) {
    fail(ErrorCode::kCorrupt, "checkpoint {}: {} is missing", folder.string(), kManifestName);
  }
  return parse_manifest(read_file(path), path.string());
}

std::string problem_with(const fs::path& folder, const CheckpointFile& file, FileCheck check) {
  const fs::path path = folder / file.name;
  std::error_code error;
  const auto status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found) {
    return fmt::format("{} is missing", file.name);
  }
  if (!fs::is_regular_file(status)) {
    return fmt::format("{} is not a readable file", file.name);
  }
  const std::uintmax_t bytes = fs::file_size(path, error);
  if (error) {
    return fmt::format("{}: {}", file.name, error.message());
  }
  if (bytes != file.bytes) {
    return fmt::format("{} has {} bytes, expected {}", file.name, bytes, file.bytes);
  }
  if (check == FileCheck::kSize) {
    return {};
  }
  try {
    const Hash128 hash = hash_of_file(path);
    return hash == file.hash
               ? std::string()
               : fmt::format("{} was altered: its xxh3-128 is {}, expected {}", file.name, hash.hex(), file.hash.hex());
  } catch (const Error& e) {
    return fmt::format("{}: {}", file.name, e.what());
  }
}

std::string first_problem(const fs::path& folder, const Manifest& manifest, FileCheck check) {
  // Sizes first: they are free, and tell a file that was cut short from one that was altered.
  for (const FileCheck pass : {FileCheck::kSize, FileCheck::kContents}) {
    if (pass == FileCheck::kContents && check == FileCheck::kSize) {
      break;
    }
    for (const CheckpointFile& file : manifest.files) {
      if (std::string problem = problem_with(folder, file, pass); !problem.empty()) {
        return problem;
      }
    }
  }
  return {};
}

void publish_folder(const fs::path& partial, const fs::path& target) {
  const fs::path replaced = with_suffix(target, kReplacedSuffix);
  const bool replaces = fs::exists(target);
  if (replaces && exchange(partial, target)) {
    return;
  }
  if (replaces) {
    remove_checked(replaced);
    rename_checked(target, replaced);
  }
  try {
    rename_checked(partial, target);
  } catch (const Error&) {
    if (replaces) {
      rename_checked(replaced, target);
    }
    throw;
  }
}

void finish_publishing(const fs::path& partial, const fs::path& target) {
  sync_folder(target.parent_path());
  remove_checked(partial);
  remove_checked(with_suffix(target, kReplacedSuffix));
}

void remove_checkpoint(const fs::path& folder) {
  const fs::path deleting = with_suffix(folder, kDeletingSuffix);
  remove_checked(deleting);
  rename_checked(folder, deleting);
  remove_checked(deleting);
}

fs::path with_suffix(fs::path path, const char* suffix) {
  path += suffix;
  return path;
}

}  // namespace lockstep
