#include "comm/server/listener.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <utility>
#include <vector>

#include "base/error.h"
#include "comm/control/handshake.h"

namespace lockstep::server {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
using std::chrono::milliseconds;

// Connections that have not shown that they belong to the job. When more come, one goes: a job's own take a few round
// trips.
constexpr std::size_t kMaxPending = 256;
constexpr milliseconds kPauseWithoutDescriptors{100};
// How long a worker has to take the last frame before it is cut off.
constexpr milliseconds kFarewell{1'000};
// Refused connections that are told of; a flood of them is not.
constexpr int kMostRefusalsSaid = 10;

}  // namespace

Listener::Listener(asio::io_context& io, Options options, Serve serve)
    : io_(io), options_(std::move(options)), serve_(std::move(serve)), acceptor_(io) {
  error_code error;
  const asio::ip::address address = asio::ip::make_address(options_.listen, error);
  require(!error, "server: {} is no numeric address to listen on", options_.listen);
  const tcp::endpoint where(address, options_.port);
  const auto check = [&] {
    if (error) {
      fail(ErrorCode::kIo, "server: cannot listen on {} port {}: {}", options_.listen, options_.port, error.message());
    }
  };
  acceptor_.open(where.protocol(), error);
  check();
  acceptor_.set_option(asio::socket_base::reuse_address(true), error);
  check();
  acceptor_.bind(where, error);
  check();
  acceptor_.listen(asio::socket_base::max_listen_connections, error);
  check();
  port_ = acceptor_.local_endpoint().port();
  asio::co_spawn(io_, accept_all(), asio::detached);
}

asio::awaitable<void> Listener::accept_all() {
  while (true) {
    error_code error;
    tcp::socket socket(io_);
    co_await acceptor_.async_accept(socket, asio::redirect_error(asio::use_awaitable, error));
    if (error) {
      // Out of file descriptors, for one: what is open may end.
      asio::steady_timer pause(io_, kPauseWithoutDescriptors);
      co_await pause.async_wait(asio::use_awaitable);
      continue;
    }
    if (pending_.size() >= kMaxPending) {
      make_room();
    }
    const tcp::endpoint from = socket.remote_endpoint(error);
    pending_.push_back({std::move(socket), from});
    asio::co_spawn(io_, serve_one(std::prev(pending_.end())), asio::detached);
  }
}

// The oldest of the address that has most of them goes, so that a flood from one does not reach the others.
void Listener::make_room() {
  std::map<asio::ip::address, std::vector<Pending*>> by_address;
  for (Pending& pending : pending_) {
    if (pending.socket.is_open()) {
      by_address[pending.from.address()].push_back(&pending);
    }
  }
  const auto most = std::ranges::max_element(by_address, {}, [](const auto& entry) { return entry.second.size(); });
  if (most == by_address.end()) {
    return;  // they are on their way out
  }
  error_code ignored;
  most->second.front()->socket.close(ignored);
}

asio::awaitable<void> Listener::serve_one(std::list<Pending>::iterator place) {
  const tcp::endpoint from = place->from;
  std::shared_ptr<Connection> connection;
  std::string problem;
  try {
    connection = co_await Connection::accept(place->socket, options_.token, options_.tls);
  } catch (const Error& refusal) {
    problem = refusal.what();
  }
  pending_.erase(place);
  if (connection) {
    try {
      co_await serve_connection(connection);
    } catch (const Error& refusal) {
      problem = refusal.what();
      connection->send_last({.type = FrameType::kFail}, encode(refusal));
    }
    co_await connection->flush(kFarewell);
    connection->close();
  }
  if (!problem.empty() && ++refusals_ <= kMostRefusalsSaid && options_.say) {
    options_.say(LogLevel::kWarning,
                 fmt::format("refused a connection from {}: {}{}", from.address().to_string(), problem,
                             refusals_ == kMostRefusalsSaid ? "; further ones are not mentioned" : ""));
  }
}

asio::awaitable<void> Listener::serve_connection(std::shared_ptr<Connection> connection) {
  asio::steady_timer deadline = connection->close_in(control::kHandshakeDeadline);
  bool has_asked = false;
  try {
    FrameHeader header = co_await connection->read_header();
    while (header.type == FrameType::kAlive) {
      has_asked = true;
      deadline.cancel();
      connection->send({.header = {.type = FrameType::kAlive}});
      co_await connection->flush(kFarewell);
      header = co_await connection->read_header();
    }
    require(header.type == FrameType::kHello, "server: the first frame is of type {}, expected a hello",
            static_cast<int>(header.type));
    std::vector<std::byte> hello = co_await connection->read_small_payload(header);
    deadline.cancel();
    has_asked = false;
    co_await serve_(connection, std::move(hello));
  } catch (const Error& error) {
    if (!has_asked || error.code() != ErrorCode::kPeerLost) {
      throw;
    }
  }
}

}  // namespace lockstep::server
