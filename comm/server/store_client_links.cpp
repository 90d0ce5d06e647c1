// A store client's connections: made, watched, and made again.
#include <algorithm>
#include <utility>

#include "comm/server/dial.h"
#include "comm/server/store_client_impl.h"

namespace lockstep::server {
namespace {

namespace asio = boost::asio;
using std::chrono::milliseconds;

constexpr milliseconds kPauseBetweenTries{100};
// How often a connection may be lost without anything done in between.
constexpr int kMostLosses = 10;
// How long a server that is lost while this worker says that it is done is looked for: it has ended, most likely.
constexpr milliseconds kLastTries{2'000};

}  // namespace

asio::awaitable<void> StoreClient::Impl::keep(Link& link) {
  while (!is_ending_) {
    std::optional<Error> problem;
    std::shared_ptr<Connection> connection;
    try {
      connection = co_await connect(link);
      if (is_ending_) {
        connection->close();
        co_return;
      }
      link.connection = connection;
      link.opened.reset();
      if (open_) {
        send_open(link);
      }
      settle();
      co_await receive(link, connection);
    } catch (const Refusal& error) {
      problem.emplace(error.code(), error.what());
    } catch (const Error& error) {
      // Without a connection all tries are over; a lost one is made again.
      const bool is_useless =
          ++link.losses > kMostLosses && Clock::now() - link.moved >= milliseconds(options_.timeout_ms);
      if (!connection || error.code() == ErrorCode::kUsage || is_useless) {
        problem.emplace(error.code(), error.what());
      }
    }
    if (connection) {
      connection->close();
    }
    link.connection = nullptr;
    link.opened.reset();
    if (link.has_left || (problem && link.is_closing)) {
      link.is_closing = false;  // the server has ended
      settle();
      co_return;
    }
    if (problem) {
      fail_all(*problem);
    } else {
      asio::steady_timer pause(io_, kPauseBetweenTries);
      co_await pause.async_wait(asio::use_awaitable);
    }
  }
}

asio::awaitable<std::shared_ptr<Connection>> StoreClient::Impl::connect(Link& link) {
  Dial call;
  call.address = options_.servers[link.server];
  call.token = options_.token;
  call.tls = options_.tls;
  call.hello.rank = rank_;
  call.hello.world = world_;
  call.hello.part = static_cast<std::uint32_t>(link.server);
  call.hello.parts = static_cast<std::uint32_t>(links_.size());
  call.hello.timeout_ms = static_cast<std::uint32_t>(options_.timeout_ms);
  call.hello.mode = options_.mode;
  call.hello.name = options_.name;
  call.timeout = link.is_closing ? kLastTries : milliseconds(options_.timeout_ms);
  call.is_mortal = link.was_open && !link.is_durable;
  const Dialed dialed = co_await dial(io_, std::move(call));
  rank_ = dialed.welcome.rank;
  world_ = dialed.welcome.world;
  co_return dialed.connection;
}

// A server that says nothing, though it has been asked something, is not waited for longer than timeout_ms.
asio::awaitable<void> StoreClient::Impl::watch() {
  const milliseconds limit(options_.timeout_ms);
  asio::steady_timer timer(io_);
  while (!is_ending_) {
    timer.expires_after(std::clamp(limit / 20, milliseconds(5), milliseconds(250)));
    co_await timer.async_wait(asio::use_awaitable);
    for (Link& link : links_) {
      if (link.connection && waits(link)) {
        const auto moved = std::max(link.connection->last_received(), link.connection->last_sent());
        if (Clock::now() - moved >= limit) {
          link.connection->close();
        }
      }
    }
  }
}

}  // namespace lockstep::server
