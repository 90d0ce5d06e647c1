// A folder for the files of a benchmark, gone when the benchmark is.
#pragma once

#include <filesystem>
#include <optional>
#include <vector>

#include "base/file.h"

namespace lockstep {

class ScratchFolder {
 public:
  // parent/benchmark.
  [[nodiscard]] static std::filesystem::path path_in(const std::filesystem::path& parent);

  // Makes path_in(parent), and the folders above it that do not exist. Removes what a benchmark that was killed left in
  // it. Throws Error(kUsage) where this process may not write, or another benchmark does.
  explicit ScratchFolder(const std::filesystem::path& parent);
  // Removes what the constructor made, with all that is in the scratch folder by now; folders above it only when nobody
  // else has put anything there.
  ~ScratchFolder();
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  std::vector<std::filesystem::path> made_;  // innermost first
  std::optional<File> lock_;
};

}  // namespace lockstep
