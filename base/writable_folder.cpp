#include "base/writable_folder.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <system_error>

#include "base/error.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

// Why `path` may not be used as `mode` says; empty when it may.
std::string refusal(const fs::path& path, int mode) {
  return ::faccessat(AT_FDCWD, path.c_str(), mode, AT_EACCESS) == 0 ? "" : std::strerror(errno);
}

}  // namespace

fs::path existing_part(const fs::path& path) {
  std::error_code error;
  fs::path part = fs::absolute(path, error);
  // What cannot be looked at may exist, and is what stands in the way.
  while (fs::status(part, error).type() == fs::file_type::not_found && part.has_relative_path()) {
    part = part.parent_path();
  }
  return part;
}

void require_writable_folder(const fs::path& folder) {
  const fs::path existing = existing_part(folder);
  std::error_code error;
  const fs::file_status status = fs::status(existing, error);
  require(status.type() != fs::file_type::none, "{} cannot be written: {}: {}", folder.string(), existing.string(),
          error.message());
  require(fs::is_directory(status), "{} cannot be written: {} is not a folder", folder.string(), existing.string());
  const std::string refused = refusal(existing, W_OK | X_OK);
  require(refused.empty(), "{} cannot be written: {}: {}", folder.string(), existing.string(), refused);
}

void require_writable_file(const fs::path& file) {
  std::error_code error;
  if (fs::exists(file, error)) {
    const std::string refused = refusal(file, W_OK);
    require(refused.empty(), "{} cannot be written: {}", file.string(), refused);
  }
}

std::optional<std::uint64_t> room_at(const fs::path& path) {
  constexpr long kZfs = 0x2fc12fc1;
  struct statfs status {};
  if (::statfs(existing_part(path).c_str(), &status) != 0 || status.f_blocks == 0 ||
      status.f_type == BTRFS_SUPER_MAGIC || status.f_type == kZfs) {
    return std::nullopt;
  }
  return static_cast<std::uint64_t>(status.f_bavail) * static_cast<std::uint64_t>(status.f_bsize);
}

}  // namespace lockstep
