// What time brings about: who leads, who is waited for too long, and how the job ends.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "comm/server/store_server_impl.h"

namespace lockstep::server {
namespace {

namespace asio = boost::asio;
using std::chrono::milliseconds;

constexpr milliseconds kTick{100};
// How long workers have to take the last frame before they are cut off.
constexpr milliseconds kFarewell{1'000};

double seconds(Connection::Clock::duration time) { return std::chrono::duration<double>(time).count(); }

}  // namespace

void StoreServer::Impl::elect() {
  if (roster_.elect()) {
    say(LogLevel::kWarning, fmt::format("{} evaluates and saves from now on", roster_.workers()[*roster_.lead()].name));
  }
}

asio::awaitable<void> StoreServer::Impl::tick() {
  asio::steady_timer timer(io_);
  while (!over_) {
    timer.expires_after(kTick);
    co_await timer.async_wait(asio::use_awaitable);
    if (over_ || !store_) {
      continue;
    }
    elect();
    answer_pulls();
    for (Worker& worker : roster_.workers()) {
      if (!over_ && worker.pull && !worker.is_sending && worker.is_here()) {
        look_after(worker);
      }
    }
    roster_.look_for_slow_workers(
        [this](bool is_slow, const std::string& text) { say(is_slow ? LogLevel::kWarning : LogLevel::kInfo, text); });
    end_if_over();
  }
}

// Tells a worker that waits that it is not forgotten. One that keeps it waiting in silence is cut off; one that was
// never there ends the job.
void StoreServer::Impl::look_after(Worker& waiting) {
  const Worker* const awaited = roster_.awaited_by(waiting);
  const auto now = Clock::now();
  Waiting sign;
  if (awaited != nullptr) {
    sign = {awaited->rank, roster_.completed(*awaited)};
    const auto waited = now - waiting.pull_since;
    const bool is_late = waited >= waiting.patience && awaited->rank != waiting.rank;
    if (is_late && (!awaited->has_joined || !store_->is_started())) {
      finish(Error(ErrorCode::kTimeout,
                   fmt::format("server: {} kept the others waiting for {:.1f} s",
                               awaited->has_joined ? awaited->name + ", which has not sent the first weights,"
                                                   : fmt::format("rank {}, which has not come,", awaited->rank),
                               seconds(waited))));
      return;
    }
    if (is_late && awaited->is_here() && now - awaited->connection->last_received() >= waiting.patience) {
      say(LogLevel::kWarning,
          fmt::format("{} has said nothing for {:.1f} s, while {} waits for it; it is taken for lost", awaited->name,
                      seconds(now - awaited->connection->last_received()), waiting.name));
      awaited->connection->close();
    }
  }
  waiting.connection->send({.type = FrameType::kWaiting}, encode(sign));
}

StoreServer::End StoreServer::Impl::end_of(std::string cause) const {
  End end;
  end.orderly = cause.empty();
  end.cause = std::move(cause);
  if (store_) {
    end.updates = store_->state().applied;
    end.missing = roster_.missing_steps();
    end.staleness = store_->state().staleness;
  }
  return end;
}

void StoreServer::Impl::end_if_over() {
  if (over_ || !store_) {
    return;
  }
  switch (roster_.is_over()) {
    case StoreRoster::Over::kNo:
      return;
    case StoreRoster::Over::kOrderly:
      over_ = true;
      asio::co_spawn(io_, close_all(end_of("")), asio::detached);
      return;
    case StoreRoster::Over::kDeserted:
      finish(Error(ErrorCode::kPeerLost, "server: all workers are gone, and none has come back"));
  }
}

void StoreServer::Impl::finish(const Error& error) {
  if (over_) {
    return;
  }
  over_ = true;
  cause_ = error;
  for (const Worker& worker : roster_.workers()) {
    if (worker.connection) {
      worker.connection->send_last({.type = FrameType::kFail}, encode(error));
    }
  }
  asio::co_spawn(io_, close_all(end_of(error.what())), asio::detached);
}

// Workers end their connections when they have read the last frame.
asio::awaitable<void> StoreServer::Impl::close_all(End end) {
  const auto deadline = Clock::now() + kFarewell;
  const auto are_gone = [this] {
    return std::all_of(roster_.workers().begin(), roster_.workers().end(),
                       [](const Worker& worker) { return !worker.connection; });
  };
  asio::steady_timer pause(io_);
  while (!are_gone() && Clock::now() < deadline) {
    pause.expires_after(milliseconds(5));
    co_await pause.async_wait(asio::use_awaitable);
  }
  // What has diverged is not to be gone on from, either: the newest checkpoint is.
  const bool is_of_no_use = end.orderly || (cause_ && cause_->code() == ErrorCode::kDiverged);
  if (is_of_no_use && journal_) {
    journal_->clear();
  }
  const std::lock_guard lock(mutex_);
  end_ = std::move(end);
  ended_.notify_all();
}

}  // namespace lockstep::server
