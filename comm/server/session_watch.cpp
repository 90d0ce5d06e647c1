// A session's deadlines, and its end.
#include <fmt/format.h>

#include <algorithm>

#include "comm/server/session_impl.h"

namespace lockstep::server {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;
using std::chrono::milliseconds;

// How long a server has to answer who is to blame.
constexpr milliseconds kAnswerDeadline{3'000};
// How long the last frames may take on their way.
constexpr milliseconds kFarewell{500};

}  // namespace

asio::awaitable<void> Session::Impl::watch() {
  const milliseconds shorter(options_.silence_ms > 0 ? std::min(options_.silence_ms, options_.timeout_ms)
                                                     : options_.timeout_ms);
  const milliseconds period = std::clamp(shorter / 20, milliseconds(5), milliseconds(250));
  asio::steady_timer timer(io_);
  while (!failing_) {
    timer.expires_after(period);
    co_await timer.async_wait(asio::use_awaitable);
    const auto now = Clock::now();
    if (!is_in_ && !refusal_ && options_.gives_up && options_.gives_up()) {
      fail_session(Error(ErrorCode::kPeerLost, "stopped while it waited for the other workers"), Job::kOver);
    }
    if (options_.silence_ms > 0) {
      watch_servers(now);
    }
    if (operations_.empty()) {
      asked_who_.reset();
    } else if (!failing_) {
      watch_calls(now);
    }
  }
}

// Lets the servers hear from this worker, and hears whether they are there.
void Session::Impl::watch_servers(Clock::time_point now) {
  const milliseconds silence(options_.silence_ms);
  if (now - watched_ > silence / 4) {
    heard_from_ = now;  // this thread stood still itself, and cannot tell who else did
  }
  watched_ = now;
  for (std::size_t server = 0; server < connections_.size(); ++server) {
    const std::shared_ptr<Connection>& connection = connections_[server];
    const auto quiet = now - std::max(connection->last_received(), heard_from_);
    if (quiet >= silence) {
      fail_session(Error(ErrorCode::kTimeout,
                         fmt::format("the parameter server {} has not answered for {:.1f} s",
                                     text_of(options_.servers[server]), std::chrono::duration<double>(quiet).count())),
                   Job::kGoesOn);
      return;
    }
    if (now - connection->last_sent() >= silence / kSignsInSilence && !greets_[server]) {
      greets_[server] = true;
      connection->send({.header = {.type = FrameType::kAlive}, .sent = [this, server] { greets_[server] = false; }});
    }
  }
}

void Session::Impl::watch_calls(Clock::time_point now) {
  const Operation& oldest = *operations_.begin()->second;
  const Clock::time_point received = std::max(oldest.begin, data_came_);
  const Clock::time_point moved = std::max(received, data_went_);
  if (asked_who_ && received < *asked_who_) {
    if (now - *asked_who_ >= kAnswerDeadline) {
      fail_session(
          Error(ErrorCode::kTimeout, fmt::format("{}: nothing came from the parameter server for {:.1f} s", oldest.name,
                                                 std::chrono::duration<double>(now - received).count())),
          Job::kGoesOn);
    }
    return;
  }
  asked_who_.reset();
  if (now - moved >= milliseconds(options_.timeout_ms)) {
    asked_who_ = now;
    ask_who(oldest, now - moved);
  }
}

// Asks the servers that this call waits for.
void Session::Impl::ask_who(const Operation& operation, Clock::duration waited) {
  FrameHeader header{.type = FrameType::kWho, .call = operation.call, .rank = kNoRank};
  const auto late = std::find_if(operation.awaited_of_rank.begin(), operation.awaited_of_rank.end(),
                                 [](std::uint64_t bytes) { return bytes > 0; });
  if (late != operation.awaited_of_rank.end()) {
    header.rank = static_cast<std::uint32_t>(late - operation.awaited_of_rank.begin());
  }
  const Who who{static_cast<std::uint32_t>(std::chrono::duration_cast<milliseconds>(waited).count()), operation.name};
  for (std::size_t server = 0; server < connections_.size(); ++server) {
    if (operation.awaited_of_server[server] > 0) {
      connections_[server]->send(header, encode(who));
    }
  }
}

// Ends.

void Session::Impl::fail_session(const Error& error, Job job) {
  if (!is_in_) {
    lost_ = Lost(error.code(), error.what());
    if (job == Job::kOver) {
      refusal_ = error;
    }
    for (const std::shared_ptr<Connection>& connection : connections_) {
      connection->close();
    }
  } else if (!failing_) {
    failing_ = true;
    asio::co_spawn(io_, end_session(error, job), asio::detached);
  }
}

// The servers are told, so that they do not take this worker's end for the cause.
asio::awaitable<void> Session::Impl::end_session(Error error, Job job) {
  const FrameType type = job == Job::kGoesOn ? FrameType::kRegroup : FrameType::kFail;
  for (const std::shared_ptr<Connection>& connection : connections_) {
    connection->send_last({.type = type}, encode(error));
  }
  const auto deadline = Clock::now() + kFarewell;
  for (const std::shared_ptr<Connection>& connection : connections_) {
    const auto left = std::max(deadline - Clock::now(), Clock::duration(0));
    co_await connection->flush(std::chrono::duration_cast<milliseconds>(left));
  }
  for (const std::shared_ptr<Connection>& connection : connections_) {
    connection->close();
  }
  ended_by_ = std::make_exception_ptr(error);
  {
    const std::lock_guard lock(outcome_->mutex);
    outcome_->error = ended_by_;
    outcome_->job_goes_on = job == Job::kGoesOn;
    outcome_->changed.notify_all();
  }
  for (const auto& [call, operation] : operations_) {
    operation->finish(ended_by_);
  }
  operations_.clear();
  bye_came_.cancel();
}

asio::awaitable<void> Session::Impl::say_bye() {
  for (const std::shared_ptr<Connection>& connection : connections_) {
    connection->send({.header = {.type = FrameType::kBye}});
  }
  const auto deadline = Clock::now() + milliseconds(options_.timeout_ms);
  while (std::find(has_said_bye_.begin(), has_said_bye_.end(), false) != has_said_bye_.end()) {
    if (ended_by_) {
      std::rethrow_exception(ended_by_);
    }
    if (Clock::now() >= deadline) {
      fail(ErrorCode::kTimeout, "close: a parameter server has not answered for {:.1f} s", options_.timeout_ms / 1e3);
    }
    error_code ended;
    bye_came_.expires_at(deadline);
    co_await bye_came_.async_wait(asio::redirect_error(asio::use_awaitable, ended));
  }
  failing_ = true;  // nothing is watched any more
  for (const std::shared_ptr<Connection>& connection : connections_) {
    connection->close();
  }
}

asio::awaitable<void> Session::Impl::end_early() {
  if (!failing_) {
    failing_ = true;
    const Error error(ErrorCode::kPeerLost,
                      fmt::format("rank {} ({}) left the job before its end", rank_, options_.name));
    co_await end_session(error, Job::kOver);
  }
  while (!ended_by_) {
    asio::steady_timer pause(io_, milliseconds(5));
    co_await pause.async_wait(asio::use_awaitable);
  }
}

}  // namespace lockstep::server
