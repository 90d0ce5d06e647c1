#include "comm/control/roster.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/process.h"

namespace lockstep::control {
namespace {

using std::chrono::duration;

double seconds(Roster::Clock::duration length) { return duration<double>(length).count(); }

// A connection may break although its two ends are well; a worker then comes back within this time.
constexpr std::chrono::milliseconds kReconnect{1'000};

// What the threads of the libraries use while nothing is done. A wait for other ranks looks a hundred times a second,
// and uses more.
constexpr double kIdleCpuSeconds = 0.005;

}  // namespace

Roster::Roster(const Options& options, Clock::time_point now)
    : options_(options), checked_(now), awaited_since_(static_cast<std::size_t>(options.world), now) {}

bool Roster::hello(const Hello& hello, Clock::time_point now) {
  if (hello.attempt != options_.attempt || hello.world != options_.world || hello.rank < 0 ||
      hello.rank >= options_.world ||
      std::find(replaced_.begin(), replaced_.end(), process_of(hello)) != replaced_.end()) {
    return false;
  }
  const auto known = workers_.find(hello.rank);
  if (known != workers_.end()) {
    Worker& worker = known->second;
    const bool same = worker.hello.host == hello.host && worker.hello.process == hello.process;
    if (!same || worker.connected || worker.ended) {
      return false;
    }
    worker.connected = true;
    worker.heard = now;
    return true;
  }
  Worker worker;
  worker.hello = hello;
  worker.heard = now;
  worker.moved = now;
  workers_.emplace(hello.rank, std::move(worker));
  return true;
}

void Roster::heartbeat(int rank, const Heartbeat& heartbeat, Clock::time_point now) {
  Worker& worker = workers_.at(rank);
  worker.heard = now;
  const bool moved = heartbeat.activity.changes != worker.last.activity.changes ||
                     heartbeat.cpu_seconds - worker.cpu_seconds_then > kIdleCpuSeconds ||
                     heartbeat.io_bytes != worker.last.io_bytes;
  if (moved) {
    worker.moved = now;
    worker.cpu_seconds_then = heartbeat.cpu_seconds;
    worker.warned = false;
  }
  worker.last = heartbeat;
}

void Roster::farewell(int rank, const Farewell& farewell, Clock::time_point now) {
  Worker& worker = workers_.at(rank);
  worker.heard = now;
  worker.ended = true;
  worker.farewell = farewell;
}

void Roster::closed(int rank, Clock::time_point now) {
  Worker& worker = workers_.at(rank);
  worker.connected = false;
  worker.closed = now;
}

void Roster::replace(int rank, Clock::time_point now) {
  if (const auto known = workers_.find(rank); known != workers_.end()) {
    replaced_.push_back(process_of(known->second.hello));
    workers_.erase(known);
  }
  awaited_since_.at(static_cast<std::size_t>(rank)) = now;
  told_missing_ = false;
}

std::string Roster::name_of(const Worker& worker) const {
  return fmt::format("rank {} (host {}, process {})", worker.hello.rank, worker.hello.host, worker.hello.process);
}

bool Roster::process_is_gone(const Worker& worker) const {
  if (worker.hello.host != options_.own_host || worker.hello.process_namespace != options_.own_namespace) {
    return false;
  }
  const auto status = process_status(worker.hello.process);
  return !status || status->state == 'Z' || status->state == 'X';
}

Trouble Roster::trouble(const Worker& worker, TroubleKind kind, const std::string& what) const {
  Trouble trouble;
  trouble.kind = kind;
  trouble.rank = worker.hello.rank;
  trouble.host = worker.hello.host;
  trouble.step = completed_step();
  trouble.fatal = !options_.replaces_workers;
  const ActivityState& activity = worker.last.activity;
  trouble.text = fmt::format("{} {}; last seen in {}", name_of(worker), what,
                             describe(activity.phase, activity.step, activity.part));
  return trouble;
}

// Those whose connection ended first come first, and are waited for: mpirun ends the others when one has died, and of
// processes on this machine the end is known sooner than of those on others.
std::vector<Trouble> Roster::check_connections(Clock::time_point now) {
  std::vector<Worker*> closed;
  for (auto& [rank, worker] : workers_) {
    if (!worker.told && !worker.ended && !worker.connected) {
      closed.push_back(&worker);
    }
  }
  std::stable_sort(closed.begin(), closed.end(),
                   [](const Worker* a, const Worker* b) { return a->closed < b->closed; });
  std::vector<Trouble> found;
  for (Worker* const worker : closed) {
    if (now - worker->closed < kReconnect && !process_is_gone(*worker)) {
      break;
    }
    found.push_back(trouble(*worker, TroubleKind::kGone, "is gone"));
    found.back().silent_seconds = seconds(now - worker->closed);
    worker->told = true;
  }
  return found;
}

std::vector<Trouble> Roster::check(Clock::time_point now) {
  // A coordinator that stood still itself, or was not given the processor, cannot tell who did.
  if (now - checked_ > options_.silence / 4 + options_.period) {
    const Clock::duration lost = now - checked_;
    for (auto& [rank, worker] : workers_) {
      worker.heard += lost;
      worker.moved += lost;
    }
  }
  checked_ = now;

  std::vector<Trouble> found;
  for (auto& [rank, worker] : workers_) {
    if (worker.told) {
      continue;
    }
    if (worker.ended) {
      if (worker.farewell.exit_code != 0 && !worker.farewell.message.empty()) {
        Trouble failed = trouble(worker, TroubleKind::kFailed, "");
        failed.text = fmt::format("rank {} (host {}): {}", rank, worker.hello.host, worker.farewell.message);
        failed.fatal = failed.lost = false;
        failed.exit_code = worker.farewell.exit_code;
        failed.again_is_useless = worker.farewell.again_is_useless;
        found.push_back(std::move(failed));
      } else if (worker.farewell.exit_code != 0 && options_.replaces_workers) {
        found.push_back(trouble(worker, TroubleKind::kLeft, "has ended for others"));
        found.back().lost = false;
        found.back().exit_code = worker.farewell.exit_code;
      }
      worker.told = true;
      continue;
    }
    if (!worker.connected) {
      continue;
    }
    if (now - worker.heard + options_.period >= options_.silence) {
      found.push_back(trouble(worker, TroubleKind::kSilent,
                              fmt::format("has not answered for {:.1f} s", seconds(now - worker.heard))));
      found.back().silent_seconds = seconds(now - worker.heard);
      worker.told = true;
      continue;
    }
    const Clock::duration still = now - worker.moved;
    const bool to_blame = !waits_for_others(worker.last.activity.phase);
    if (to_blame && still + options_.period >= options_.silence && (!worker.warned || still >= options_.still)) {
      Trouble stands = trouble(worker, TroubleKind::kStill,
                               fmt::format("answers, but its work has stood still for {:.1f} s (thread state {})",
                                           seconds(still), worker.last.thread_state));
      stands.lost = still >= options_.still;
      stands.fatal = stands.fatal && stands.lost;
      stands.silent_seconds = seconds(still);
      worker.warned = true;
      worker.told = stands.lost;
      found.push_back(std::move(stands));
    }
  }
  const std::vector<Trouble> gone = check_connections(now);
  found.insert(found.end(), gone.begin(), gone.end());
  std::vector<int> missing;
  for (int rank = 0; rank < options_.world && !told_missing_; ++rank) {
    if (!workers_.contains(rank) && now - awaited_since_[static_cast<std::size_t>(rank)] >= options_.start) {
      missing.push_back(rank);
    }
  }
  if (!missing.empty()) {
    Trouble absent;
    absent.kind = TroubleKind::kMissing;
    absent.rank = missing.front();
    absent.text = fmt::format("rank{} {} of {} did not come up within {:.0f} s", missing.size() == 1 ? "" : "s",
                              fmt::join(missing, ", "), options_.world, seconds(options_.start));
    found.push_back(std::move(absent));
    told_missing_ = true;
  }
  return found;
}

JobState Roster::state(Clock::time_point now) const {
  JobState job;
  job.attempt = options_.attempt;
  job.world = options_.world;
  for (const auto& [rank, worker] : workers_) {
    WorkerState state;
    state.rank = rank;
    state.host = worker.hello.host;
    state.process = worker.hello.process;
    state.connected = worker.connected;
    state.ended = worker.ended;
    state.silent_seconds = seconds(now - worker.heard);
    state.still_seconds = seconds(now - worker.moved);
    state.last = worker.last;
    job.workers.push_back(std::move(state));
  }
  return job;
}

std::int64_t Roster::completed_step() const {
  std::int64_t step = 0;
  for (const auto& [rank, worker] : workers_) {
    step = std::max(step, worker.last.activity.completed_step);
  }
  return step;
}

bool Roster::all_ended() const {
  return static_cast<int>(workers_.size()) == options_.world &&
         std::all_of(workers_.begin(), workers_.end(), [](const auto& entry) { return entry.second.ended; });
}

std::optional<int> Roster::common_exit_code() const {
  if (workers_.empty() || !all_ended()) {
    return {};
  }
  const int first = workers_.begin()->second.farewell.exit_code;
  const bool same = std::all_of(workers_.begin(), workers_.end(),
                                [first](const auto& entry) { return entry.second.farewell.exit_code == first; });
  return same ? std::optional(first) : std::nullopt;
}

}  // namespace lockstep::control
