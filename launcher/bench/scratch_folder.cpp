#include "launcher/bench/scratch_folder.h"

#include <string_view>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/writable_folder.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kLockName = ".lock";

}  // namespace

fs::path ScratchFolder::path_in(const fs::path& parent) { return parent / "benchmark"; }

ScratchFolder::ScratchFolder(const fs::path& parent) : path_(path_in(parent)) {
  require_writable_folder(path_);
  // Absolute as existing_part() makes it, so that one is found above the other.
  const fs::path existing = existing_part(path_);
  for (fs::path folder = fs::absolute(path_); folder != existing; folder = folder.parent_path()) {
    made_.push_back(folder);
  }
  std::error_code error;
  fs::create_directories(path_, error);
  require(!error, "{} cannot be created: {}", path_.string(), error.message());

  File lock = File::open_or_create(path_ / kLockName);
  require(lock.try_lock(), "another benchmark is writing to {}; wait for it to end, or give this one another run.name",
          path_.string());
  lock_.emplace(std::move(lock));
  for (const auto& entry : fs::directory_iterator(path_)) {
    if (entry.path().filename() != kLockName) {
      fs::remove_all(entry.path(), error);  // what stays is in the way of nothing but the room
    }
  }
}

ScratchFolder::~ScratchFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
  for (const fs::path& folder : made_) {
    fs::remove(folder, ignored);
  }
}

}  // namespace lockstep
