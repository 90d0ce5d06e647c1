// How groups, connections and the job end, and who is looked after meanwhile: see server.h.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "comm/server/server_impl.h"

namespace lockstep::server {
namespace {

namespace asio = boost::asio;
using std::chrono::milliseconds;

constexpr milliseconds kWatchPeriod{25};
// Refused connections that are told of; a flood of them is not.
constexpr int kMostRefusalsSaid = 10;

}  // namespace

// Its connection has ended.
void Server::Impl::lose(const Worker& worker, const std::string& why) {
  if (over_ || worker.is_dismissed || (worker.member && worker.member->has_said_bye)) {
    return;
  }
  const std::string text = fmt::format("{} is gone: {}", worker.name, why);
  if (worker.member) {
    end_group(Error(ErrorCode::kPeerLost, text));
  } else {
    say(LogLevel::kInfo, text);
  }
}

void Server::Impl::end_group(const Error& error) {
  if (over_ || !group_) {
    return;
  }
  if (options_.wait == milliseconds(0) || group_->has_anyone_said_bye()) {
    finish(error);
    return;
  }
  group_.reset();
  loss_ = error;
  waits_since_ = Clock::now();
  for (const std::shared_ptr<Worker>& worker : workers_) {
    if (worker->member) {
      dismiss(*worker, FrameType::kRegroup, error);
    }
  }
  say(LogLevel::kWarning, fmt::format("{}; the workers regroup", error.what()));
}

void Server::Impl::refuse(Worker& worker, const std::string& why) {
  dismiss(worker, FrameType::kFail, Error(ErrorCode::kUsage, why));
  say_refused(worker.name, why);
}

void Server::Impl::say_refused(const std::string& whom, const std::string& why) {
  if (++refusals_ <= kMostRefusalsSaid) {
    say(LogLevel::kWarning, fmt::format("refused {}: {}{}", whom, why,
                                        refusals_ == kMostRefusalsSaid ? "; further ones are not mentioned" : ""));
  }
}

// Workers end their connections when they have read the last frame.
void Server::Impl::dismiss(Worker& worker, FrameType type, const Error& error) {
  if (!worker.is_dismissed) {
    worker.is_dismissed = true;
    worker.member.reset();
    worker.connection->send_last({.type = type}, encode(error));
    asio::co_spawn(io_, cut_off(worker.connection), asio::detached);
  }
}

asio::awaitable<void> Server::Impl::cut_off(std::shared_ptr<Connection> connection) {
  asio::steady_timer deadline(io_, kFarewell);
  co_await deadline.async_wait(asio::use_awaitable);
  connection->close();
}

void Server::Impl::finish(const Error& error) {
  if (over_) {
    return;
  }
  over_ = true;
  cause_ = error;
  group_.reset();
  for (const std::shared_ptr<Worker>& worker : workers_) {
    dismiss(*worker, FrameType::kFail, error);
  }
  asio::co_spawn(io_, close_all({.orderly = false, .cause = error.what()}), asio::detached);
}

asio::awaitable<void> Server::Impl::close_all(End end) {
  const auto deadline = Clock::now() + kFarewell;
  asio::steady_timer pause(io_);
  while (!workers_.empty() && Clock::now() < deadline) {
    pause.expires_after(milliseconds(5));
    co_await pause.async_wait(asio::use_awaitable);
  }
  const std::lock_guard lock(mutex_);
  end_ = std::move(end);
  ended_.notify_all();
}

// What time brings.

asio::awaitable<void> Server::Impl::watch() {
  asio::steady_timer timer(io_);
  auto watched = Clock::now();
  while (true) {
    timer.expires_after(kWatchPeriod);
    co_await timer.async_wait(asio::use_awaitable);
    const auto now = Clock::now();
    if (now - watched > 10 * kWatchPeriod) {
      // This thread stood still itself, and cannot tell who else did.
      for (const std::shared_ptr<Worker>& worker : workers_) {
        worker->reads_since = now;
      }
    }
    watched = now;
    look_after_workers(now);
    see_to_guests();
    tell_late(now);
  }
}

void Server::Impl::look_after_workers(Clock::time_point now) {
  const std::vector<std::shared_ptr<Worker>> all(workers_.begin(), workers_.end());
  for (const std::shared_ptr<Worker>& worker : all) {
    const milliseconds silence(worker->hello.silence_ms);
    if (worker->is_dismissed || silence == milliseconds(0)) {
      continue;
    }
    const auto quiet = now - std::max(worker->connection->last_received(), worker->reads_since);
    if (worker->is_read && quiet >= silence) {
      const Error error(ErrorCode::kTimeout, fmt::format("{} has not answered for {:.1f} s", worker->name,
                                                         std::chrono::duration<double>(quiet).count()));
      worker->member ? end_group(error) : dismiss(*worker, FrameType::kRegroup, error);
      continue;
    }
    if (now - worker->connection->last_sent() >= silence / kSignsInSilence && !worker->greets) {
      worker->greets = true;
      worker->connection->send({.header = {.type = FrameType::kAlive}, .sent = [worker] { worker->greets = false; }});
    }
  }
}

void Server::Impl::tell_late(Clock::time_point now) {
  if (now - late_told_ < options_.slow_period) {
    return;
  }
  late_told_ = now;
  if (!group_) {
    return;
  }
  for (const Lateness::Late& late : group_->take_late(now)) {
    say(LogLevel::kWarning, fmt::format("{} is slow: the others waited for it alone for {:.1f} of the last {:.1f} s",
                                        group_->members()[late.rank]->name, late.waited_s, late.of_s));
  }
}

}  // namespace lockstep::server
