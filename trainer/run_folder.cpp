#include "trainer/run_folder.h"

#include <chrono>
#include <system_error>
#include <thread>

#include "base/error.h"
#include "base/writable_folder.h"

namespace lockstep {

namespace fs = std::filesystem;

fs::path run_folder(const Config& config) { return fs::path(config.run.dir) / config.run.name; }

fs::path checkpoints_folder(const Config& config) { return run_folder(config) / "checkpoints"; }

void check_run_folder(const fs::path& folder, std::uint64_t checkpoint_bytes) {
  require_writable_folder(folder);
  require_writable_folder(folder / "checkpoints");
  require_writable_file(folder / "metrics.jsonl");
  const auto room = room_at(folder / "checkpoints");
  require(room.value_or(checkpoint_bytes) >= checkpoint_bytes,
          "{} has room for {} MiB; a checkpoint of this run takes {} MiB",
          existing_part(folder / "checkpoints").string(), room.value_or(0) >> 20, (checkpoint_bytes >> 20) + 1);
}

void RunLock::take(const fs::path& folder, std::chrono::seconds patience) {
  require(try_take(folder, patience),
          "another job is writing to {}; give this run another run.name, or wait for that job to end", folder.string());
}

bool RunLock::try_take(const fs::path& folder, std::chrono::seconds patience) {
  std::error_code error;
  if (file_ || !fs::is_directory(folder, error)) {
    return true;
  }
  const fs::path path = folder / ".lock";
  require_writable_folder(folder);
  require_writable_file(path);
  File file = File::open_or_create(path);
  const auto deadline = std::chrono::steady_clock::now() + patience;
  while (!file.try_lock()) {
    if (std::chrono::steady_clock::now() >= deadline) {
      return false;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  file_.emplace(std::move(file));
  return true;
}

}  // namespace lockstep
