#include "launcher/bench/server_workers.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <system_error>

#include "base/error.h"
#include "base/file.h"
#include "comm/control/token.h"
#include "comm/server/bare_stream.h"
#include "comm/server/server.h"
#include "launcher/job/child.h"
#include "launcher/output.h"

namespace lockstep {
namespace {

constexpr int kLookPeriodMs = 50;

// A folder that only this user can look into.
class TokenFolder {
 public:
  explicit TokenFolder(const control::JobToken& token) {
    std::string path = (std::filesystem::temp_directory_path() / "lockstep-bench-XXXXXX").string();
    if (::mkdtemp(path.data()) == nullptr) {
      throw Error(ErrorCode::kIo, fmt::format("cannot make a folder like {}: {}", path,
                                              std::error_code(errno, std::generic_category()).message()));
    }
    path_ = path;
    write_file_atomic(file(), token.hex() + "\n", Readers::kOwner);
  }
  ~TokenFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TokenFolder(const TokenFolder&) = delete;
  TokenFolder& operator=(const TokenFolder&) = delete;

  [[nodiscard]] std::filesystem::path file() const { return path_ / "token"; }

 private:
  std::filesystem::path path_;
};

void hand_on(Child& child, int wait_ms) {
  child.read(wait_ms, [](Child::Stream stream, const std::string& line) {
    if (stream == Child::Stream::kOut) {
      print(line + "\n");
    } else {
      fmt::print(stderr, "{}\n", line);
    }
  });
}

}  // namespace

int run_server_workers(const ServerWorkersPlan& plan) {
  const control::JobToken token = control::JobToken::random();
  const TokenFolder folder(token);
  std::vector<std::unique_ptr<server::Server>> servers;
  std::vector<std::unique_ptr<server::BareServer>> bare_servers;
  std::string addresses;
  std::string bare_addresses;
  for (int part = 0; part < plan.servers; ++part) {
    server::Server::Options options;
    options.token = token;
    options.workers = plan.workers;
    options.part = part;
    options.parts = plan.servers;
    servers.push_back(std::make_unique<server::Server>(std::move(options)));
    bare_servers.push_back(std::make_unique<server::BareServer>());
    addresses += fmt::format("{}127.0.0.1:{}", part > 0 ? "," : "", servers.back()->port());
    bare_addresses += fmt::format("{}127.0.0.1:{}", part > 0 ? "," : "", bare_servers.back()->port());
  }
  ChildCommand command{.arguments = plan.command};
  command.arguments.insert(command.arguments.end(), {"--servers", addresses, "--bare-servers", bare_addresses});
  command.variables["LOCKSTEP_TOKEN_FILE"] = folder.file().string();
  command.variables["LOCKSTEP_WORLD_SIZE"] = std::to_string(plan.workers);
  std::vector<std::unique_ptr<Child>> workers;
  for (int rank = 0; rank < plan.workers; ++rank) {
    command.variables["LOCKSTEP_RANK"] = std::to_string(rank);
    workers.push_back(std::make_unique<Child>(command));
  }
  while (true) {
    bool all_done = true;
    for (const std::unique_ptr<Child>& worker : workers) {
      hand_on(*worker, kLookPeriodMs);
      const std::optional<int> code = worker->exit_code();
      if (code) {
        hand_on(*worker, 0);
      }
      if (code.value_or(0) != 0) {
        return *code;
      }
      all_done = all_done && code;
    }
    if (all_done) {
      return 0;
    }
  }
}

}  // namespace lockstep
