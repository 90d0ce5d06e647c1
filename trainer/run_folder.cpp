#include "trainer/run_folder.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <system_error>
#include <thread>

#include "base/error.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

constexpr auto kLockPatience = std::chrono::seconds(10);

bool may_write(const fs::path& path, bool folder) {
  return ::faccessat(AT_FDCWD, path.c_str(), folder ? W_OK | X_OK : W_OK, AT_EACCESS) == 0;
}

// `folder` itself, or the nearest folder above it that exists.
fs::path existing_part(fs::path folder) {
  std::error_code error;
  folder = fs::absolute(folder, error);
  while (!fs::exists(folder, error) && folder.has_relative_path()) {
    folder = folder.parent_path();
  }
  return folder;
}

}  // namespace

fs::path run_folder(const Config& config) { return fs::path(config.run.dir) / config.run.name; }

fs::path checkpoints_folder(const Config& config) { return run_folder(config) / "checkpoints"; }

void check_run_folder(const fs::path& folder, std::uint64_t checkpoint_bytes) {
  std::error_code error;
  for (const fs::path& place : {folder, folder / "checkpoints"}) {
    const fs::path existing = existing_part(place);
    require(fs::is_directory(existing, error), "{} cannot be written: {} is not a folder", place.string(),
            existing.string());
    require(may_write(existing, true), "{} cannot be written: {}: {}", place.string(), existing.string(),
            std::strerror(errno));
  }
  const fs::path metrics = folder / "metrics.jsonl";
  require(!fs::exists(metrics, error) || may_write(metrics, false), "{} cannot be written: {}", metrics.string(),
          std::strerror(errno));
  const fs::path existing = existing_part(folder / "checkpoints");
  const fs::space_info space = fs::space(existing, error);
  require(static_cast<bool>(error) || space.available >= checkpoint_bytes,
          "{} has room for {} MiB; a checkpoint of this run takes {} MiB", existing.string(), space.available >> 20,
          (checkpoint_bytes >> 20) + 1);
}

void RunLock::take(const fs::path& folder) {
  std::error_code error;
  if (file_ || !fs::is_directory(folder, error)) {
    return;
  }
  const fs::path path = folder / ".lock";
  require(may_write(fs::exists(path, error) ? path : folder, false), "{} cannot be written: {}", folder.string(),
          std::strerror(errno));
  File file = File::open_or_create(path);
  const auto deadline = std::chrono::steady_clock::now() + kLockPatience;
  while (!file.try_lock()) {
    require(std::chrono::steady_clock::now() < deadline,
            "another job is writing to {}; give this run another run.name, or wait for that job to end",
            folder.string());
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  file_.emplace(std::move(file));
}

}  // namespace lockstep
