#include "comm/server/dial.h"

#include <fmt/format.h>

#include <utility>

#include "comm/control/handshake.h"

namespace lockstep::server {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
using std::chrono::milliseconds;
using Clock = Connection::Clock;

constexpr milliseconds kPauseBetweenTries{100};
constexpr milliseconds kConnectDeadline{5'000};

asio::awaitable<Welcome> introduce(std::shared_ptr<Connection> connection, const Dial& dial) {
  const asio::steady_timer deadline = connection->close_in(control::kHandshakeDeadline);
  FrameHeader header{.type = FrameType::kHello};
  connection->send(header, encode(dial.hello));
  header = co_await connection->read_header();
  const std::vector<std::byte> payload = co_await connection->read_small_payload(header);
  if (header.type == FrameType::kFail) {
    const Error error = decode_error(payload);
    throw Refusal(error.code(), fmt::format("{} ({})", error.what(), text_of(dial.address)));
  }
  require(header.type == FrameType::kWelcome, "server: a frame of type {} where a welcome was expected",
          static_cast<int>(header.type));
  const Welcome welcome = decode_welcome(payload);
  const Hello& hello = dial.hello;
  require((hello.rank == kNoRank || hello.rank == welcome.rank) && (hello.world == 0 || hello.world == welcome.world),
          "server: a welcome as rank {} of {} to rank {} of {}", welcome.rank, welcome.world, hello.rank, hello.world);
  co_return welcome;
}

}  // namespace

asio::awaitable<error_code> reach(asio::io_context& io, ServerAddress address, tcp::socket& socket) {
  error_code error;
  tcp::resolver resolver(io);
  const tcp::resolver::results_type found =
      co_await resolver.async_resolve(address.host, address.port, asio::redirect_error(asio::use_awaitable, error));
  if (error) {
    co_return error;
  }
  const control::Deadline deadline(socket, kConnectDeadline);
  co_await asio::async_connect(socket, found, asio::redirect_error(asio::use_awaitable, error));
  co_return deadline.expired() ? error_code(asio::error::timed_out) : error;
}

asio::awaitable<Dialed> dial(asio::io_context& io, Dial dial) {
  const std::string where = text_of(dial.address);
  const auto deadline = Clock::now() + dial.timeout;
  asio::steady_timer pause(io);
  while (true) {
    std::string problem;
    try {
      tcp::socket socket(io);
      const error_code error = co_await reach(io, dial.address, socket);
      if (error == asio::error::connection_refused && dial.is_mortal) {
        throw Refusal(ErrorCode::kPeerLost,
                      fmt::format("the parameter server {} is gone, and it keeps no state (lockstep serve --state); "
                                  "start the job again from its newest checkpoint",
                                  where));
      }
      problem = error ? error.message() : "";
      if (problem.empty()) {
        Dialed dialed;
        dialed.connection = co_await Connection::greet(socket, dial.token, dial.tls, dial.address.host);
        dialed.welcome = co_await introduce(dialed.connection, dial);
        co_return dialed;
      }
    } catch (const Refusal&) {
      throw;
    } catch (const Error& error) {
      require(error.code() != ErrorCode::kUsage, "{} ({})", error.what(), where);
      problem = error.what();
    }
    if (Clock::now() >= deadline) {
      fail(ErrorCode::kTimeout, "server: {} has not answered for {:.1f} s: {}", where,
           std::chrono::duration<double>(dial.timeout).count(), problem);
    }
    pause.expires_after(kPauseBetweenTries);
    co_await pause.async_wait(asio::use_awaitable);
  }
}

}  // namespace lockstep::server
