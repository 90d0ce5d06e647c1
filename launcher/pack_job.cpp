#include "launcher/pack_job.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <optional>
#include <string>

#include "base/error.h"
#include "base/progress.h"
#include "trainer/agreement.h"

namespace lockstep {
namespace {

PackPeers peers_of(Communicator& communicator) {
  PackPeers peers;
  peers.rank = communicator.rank();
  peers.world = communicator.world_size();
  peers.all_gather = [&communicator](const std::string& mine) { return communicator.all_gather_text(mine); };
  peers.broadcast = [&communicator](const std::string& text, int root) {
    return communicator.broadcast_text(text, root);
  };
  return peers;
}

// One Progress a stage, from its first call to the one in which everything is done.
class StageProgress {
 public:
  explicit StageProgress(Log& log) : log_(log) {}

  void update(std::string_view stage, std::uint64_t done_bytes, std::uint64_t total_bytes) {
    if (total_bytes < kMB) {
      return;  // Nobody waits for it.
    }
    const std::uint64_t total = total_bytes / kMB;
    if (!progress_) {
      progress_.emplace(
          log_,
          ProgressOptions{.what = std::string(stage), .unit = "megabyte", .total = total, .start = done_bytes / kMB});
      started_ = std::chrono::steady_clock::now();
      started_at_bytes_ = done_bytes;
      return;
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - started_;
    const double bytes_per_s = static_cast<double>(done_bytes - started_at_bytes_) / std::max(seconds.count(), 1e-3);
    const std::array<std::string, 1> fields = {fmt::format("{:.1f} MB/s", bytes_per_s / kMB)};
    if (done_bytes < total_bytes) {
      progress_->update(done_bytes / kMB, fields);
    } else {
      progress_->finish(total, fields);
      progress_.reset();
    }
  }

 private:
  static constexpr std::uint64_t kMB = 1'000'000;

  Log& log_;
  std::optional<Progress> progress_;
  std::chrono::steady_clock::time_point started_;
  std::uint64_t started_at_bytes_ = 0;
};

PackResult pack_with_agreed_errors(const PackOptions& options, const PackPeers& peers, const PackHooks& hooks) {
  try {
    return pack(options, peers, hooks);
  } catch (const Error& error) {
    // pack() throws the same on every rank, except where the others cannot be reached any more.
    if (error.code() == ErrorCode::kPeerLost || error.code() == ErrorCode::kTimeout) {
      throw;
    }
    throw AgreedError(error.code(), error.what());
  }
}

}  // namespace

PackResult pack_on_all_ranks(const PackOptions& options, Communicator& communicator, Log& log, const StopSignal& stop) {
  StageProgress progress(log);
  PackHooks hooks;
  hooks.progress = [&](std::string_view stage, std::uint64_t done_bytes, std::uint64_t total_bytes) {
    progress.update(stage, done_bytes, total_bytes);
  };
  hooks.message = [&](const std::string& line) { log.info("pack: {}", line); };
  hooks.stop_requested = [&] { return stop.requested(); };
  return pack_with_agreed_errors(options, peers_of(communicator), hooks);
}

}  // namespace lockstep
