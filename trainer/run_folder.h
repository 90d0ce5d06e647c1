// runs/NAME: where a run keeps its files, and that only one job writes there.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>

#include "base/file.h"
#include "trainer/config.h"

namespace lockstep {

// runs/NAME of a configuration.
[[nodiscard]] std::filesystem::path run_folder(const Config& config);
[[nodiscard]] std::filesystem::path checkpoints_folder(const Config& config);

// Throws Error(kUsage) when this process may not write into `folder` (or make it, where it does not exist), or when its
// file system has no room for `checkpoint_bytes`. Changes nothing.
void check_run_folder(const std::filesystem::path& folder, std::uint64_t checkpoint_bytes);

// Held by rank 0 as long as its job may write to the run.
class RunLock {
 public:
  // Takes the lock of an existing run folder, and makes sure that it is held once the folder exists: does nothing where
  // there is none, or when the lock is held already. Waits up to `patience` for a job that was killed to be gone.
  // Throws Error(kUsage) when another job goes on writing there.
  static constexpr std::chrono::seconds kPatience{10};
  void take(const std::filesystem::path& folder, std::chrono::seconds patience = kPatience);
  // The same, but returns whether nobody else goes on writing there.
  [[nodiscard]] bool try_take(const std::filesystem::path& folder, std::chrono::seconds patience);

 private:
  std::optional<File> file_;
};

}  // namespace lockstep
