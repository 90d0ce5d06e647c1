#include "comm/server/token_file.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <system_error>

#include "base/error.h"
#include "base/file.h"

namespace lockstep::server {

namespace fs = std::filesystem;

fs::path token_file(const EnvironmentLookup& environment) {
  if (const auto path = environment("LOCKSTEP_TOKEN_FILE"); path && !path->empty()) {
    return *path;
  }
  const auto home = environment("HOME");
  require(home && !home->empty(), "server: neither LOCKSTEP_TOKEN_FILE nor HOME says where the token is");
  return fs::path(*home) / ".lockstep" / "token";
}

control::JobToken read_token(const fs::path& path) {
  std::error_code problem;
  const fs::file_status status = fs::status(path, problem);
  require(fs::exists(status),
          "server: there is no token in {}; `lockstep serve` makes one, to be copied to the workers", path.string());
  constexpr fs::perms kOthers = fs::perms::group_all | fs::perms::others_all;
  require((status.permissions() & kOthers) == fs::perms::none,
          "server: {} is open to others than its owner, expected mode 0600", path.string());
  std::string text = read_file(path);
  text.erase(std::min(text.find_last_not_of("\r\n") + 1, text.size()));
  try {
    return control::JobToken::from_hex(text);
  } catch (const Error& error) {
    fail(ErrorCode::kUsage, "server: {}: {}", path.string(), error.what());
  }
}

control::JobToken read_or_create_token(const fs::path& path) {
  std::error_code problem;
  if (!fs::exists(path, problem)) {
    if (path.has_parent_path() && fs::create_directories(path.parent_path(), problem)) {
      fs::permissions(path.parent_path(), fs::perms::owner_all, problem);
    }
    // Written whole under a name of its own; of several processes, the first to give it its name wins.
    fs::path own = path;
    own += fmt::format(".{}", ::getpid());
    write_file_atomic(own, control::JobToken::random().hex() + "\n", Readers::kOwner);
    fs::create_hard_link(own, path, problem);
    const bool is_there = !problem || problem == std::errc::file_exists;
    const std::string why = problem.message();
    fs::remove(own, problem);
    if (!is_there) {
      fail(ErrorCode::kIo, "server: cannot make {}: {}", path.string(), why);
    }
  }
  return read_token(path);
}

}  // namespace lockstep::server
