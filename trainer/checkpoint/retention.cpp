#include "trainer/checkpoint/retention.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <optional>
#include <string>
#include <system_error>

#include "base/error.h"
#include "base/file.h"
#include "trainer/checkpoint/files.h"
#include "trainer/checkpoint/manifest.h"

namespace lockstep {

namespace fs = std::filesystem;

namespace {

// Entries called step-N<suffix>.
std::vector<CheckpointFolder> list_with_suffix(const fs::path& folder, std::string_view suffix) {
  std::vector<CheckpointFolder> found;
  std::error_code error;
  if (!fs::exists(folder, error)) {
    return found;
  }
  fs::directory_iterator entries(folder, error);
  for (; !error && entries != fs::directory_iterator(); entries.increment(error)) {
    const std::string name = entries->path().filename().string();
    if (!name.ends_with(suffix)) {
      continue;
    }
    const auto step = parse_step_folder_name(std::string_view(name).substr(0, name.size() - suffix.size()));
    std::error_code not_a_folder;
    if (step && fs::is_directory(entries->path(), not_a_folder)) {
      found.push_back({*step, entries->path()});
    }
  }
  if (error) {
    fail(ErrorCode::kIo, "list {}: {}", folder.string(), error.message());
  }
  std::sort(found.begin(), found.end(),
            [](const CheckpointFolder& a, const CheckpointFolder& b) { return a.step > b.step; });
  return found;
}

// The manifest when, as far as sizes tell, the checkpoint is whole. Reading all contents at every save would cost more
// than the save; what counts as the newest good one was hashed while it was written.
std::optional<Manifest> manifest_if_good(const fs::path& path) {
  try {
    Manifest manifest = read_manifest(path);
    if (first_problem(path, manifest, FileCheck::kSize).empty()) {
      return manifest;
    }
  } catch (const Error&) {
    return std::nullopt;
  }
  return std::nullopt;
}

}  // namespace

std::vector<CheckpointFolder> list_checkpoints(const fs::path& folder) { return list_with_suffix(folder, ""); }

void apply_retention(const fs::path& folder, const Retention& retention) {
  require(retention.keep >= 1, "checkpoint: keep is {}, expected at least 1", retention.keep);
  std::vector<CheckpointFolder> past_the_newest;
  int good = 0;
  std::optional<double> best_loss;
  fs::path best;
  for (CheckpointFolder& checkpoint : list_checkpoints(folder)) {
    const bool enough = good >= retention.keep;
    const auto manifest = enough && !retention.keep_best ? std::nullopt : manifest_if_good(checkpoint.path);
    good += manifest ? 1 : 0;
    // Of equal ones the oldest is the best: that is the one that training has not improved on.
    if (manifest && manifest->position.validation_loss &&
        (!best_loss || *manifest->position.validation_loss <= *best_loss)) {
      best_loss = manifest->position.validation_loss;
      best = checkpoint.path;
    }
    if (enough) {
      past_the_newest.push_back(std::move(checkpoint));
    }
  }
  if (good == 0) {
    return;
  }
  for (const CheckpointFolder& checkpoint : past_the_newest) {
    if (!retention.keep_best || checkpoint.path != best) {
      remove_checkpoint(checkpoint.path);
    }
  }
  for (const CheckpointFolder& checkpoint : list_with_suffix(folder, kSupersededSuffix)) {
    remove_checkpoint(checkpoint.path);
  }
}

void clean_leftovers(const fs::path& folder) {
  for (const char* suffix : {kPartialSuffix, kDeletingSuffix}) {
    for (const CheckpointFolder& leftover : list_with_suffix(folder, suffix)) {
      std::error_code error;
      fs::remove_all(leftover.path, error);
      if (error) {
        fail(ErrorCode::kIo, "remove {}: {}", leftover.path.string(), error.message());
      }
    }
  }
  put_back_replaced(folder);
}

void put_back_replaced(const fs::path& folder) {
  for (const CheckpointFolder& leftover : list_with_suffix(folder, kReplacedSuffix)) {
    const fs::path original = folder / step_folder_name(leftover.step);
    if (fs::exists(original)) {
      remove_checkpoint(leftover.path);
    } else if (std::rename(leftover.path.c_str(), original.c_str()) != 0) {
      fail_errno(fmt::format("rename {} to {}", leftover.path.string(), original.string()));
    }
  }
}

int supersede_newer(const fs::path& folder, std::uint64_t step) {
  int count = 0;
  for (const CheckpointFolder& checkpoint : list_checkpoints(folder)) {
    if (checkpoint.step <= step) {
      break;
    }
    const fs::path aside = with_suffix(checkpoint.path, kSupersededSuffix);
    if (fs::exists(aside)) {
      remove_checkpoint(aside);
    }
    if (std::rename(checkpoint.path.c_str(), aside.c_str()) != 0) {
      fail_errno(fmt::format("rename {} to {}", checkpoint.path.string(), aside.string()));
    }
    ++count;
  }
  if (count > 0) {
    sync_folder(folder);
  }
  return count;
}

}  // namespace lockstep
