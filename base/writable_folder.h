// Whether a program will be able to write somewhere, asked before anything is written.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

namespace lockstep {

// `path` itself, or the nearest folder above it that exists.
[[nodiscard]] std::filesystem::path existing_part(const std::filesystem::path& path);

// Throws Error(kUsage), saying why, unless this process may make files in `folder`, or make the folder where there is
// none.
void require_writable_folder(const std::filesystem::path& folder);

// The same of a file: it may be written to, or there is none.
void require_writable_file(const std::filesystem::path& file);

// The bytes that this process could still write to `path` or, where there is nothing yet, to the nearest folder above
// it; nothing where the file system does not tell, or compresses what is written.
[[nodiscard]] std::optional<std::uint64_t> room_at(const std::filesystem::path& path);

}  // namespace lockstep
