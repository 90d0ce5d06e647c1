#include "comm/control/handshake.h"

#include <cstring>
#include <span>

#include "base/error.h"

namespace lockstep::control {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

constexpr std::string_view kServer = "server";
constexpr std::string_view kClient = "client";

[[noreturn]] void fail_handshake(const Protocol& protocol, const Deadline& deadline, const error_code& error) {
  if (deadline.expired()) {
    fail(ErrorCode::kTimeout, "{}: the other side did not finish the handshake within {} s", protocol.name,
         std::chrono::duration_cast<std::chrono::seconds>(kHandshakeDeadline).count());
  }
  fail(ErrorCode::kPeerLost, "{}: the other side left during the handshake: {}", protocol.name, error.message());
}

}  // namespace

Deadline::Deadline(tcp::socket& socket, std::chrono::milliseconds length) : timer_(socket.get_executor(), length) {
  timer_.async_wait([&socket, state = state_](const error_code&) {
    if (*state == State::kRunning) {
      *state = State::kExpired;
      error_code ignored;
      socket.close(ignored);
    }
  });
}

asio::awaitable<JobToken> accept_handshake(tcp::socket& socket, JobToken token, Protocol protocol) {
  const Deadline deadline(socket, kHandshakeDeadline);
  error_code error;
  const auto into_error = [&error] { return asio::redirect_error(asio::use_awaitable, error); };

  const Digest mine = random_challenge();
  std::array<std::byte, sizeof(protocol.magic) + sizeof(Digest)> greeting;
  std::memcpy(greeting.data(), protocol.magic.data(), protocol.magic.size());
  std::memcpy(greeting.data() + protocol.magic.size(), mine.data(), mine.size());
  co_await asio::async_write(socket, asio::buffer(greeting), into_error());

  std::array<Digest, 2> answer;  // challenge, code
  if (!error) {
    co_await asio::async_read(socket, asio::buffer(answer.data(), sizeof(answer)), into_error());
  }
  if (error) {
    fail_handshake(protocol, deadline, error);
  }
  require(equal(answer[1], token.sign({bytes_of(kClient), mine, answer[0]})),
          "{}: the other side does not know the job's token", protocol.name);

  const Digest proof = token.sign({bytes_of(kServer), answer[0], mine});
  co_await asio::async_write(socket, asio::buffer(proof.data(), proof.size()), into_error());
  if (error) {
    fail_handshake(protocol, deadline, error);
  }
  co_return token.derive({bytes_of("session"), mine, answer[0]});
}

asio::awaitable<JobToken> greet_handshake(tcp::socket& socket, JobToken token, Protocol protocol) {
  const Deadline deadline(socket, kHandshakeDeadline);
  error_code error;
  const auto into_error = [&error] { return asio::redirect_error(asio::use_awaitable, error); };

  std::array<std::byte, sizeof(protocol.magic) + sizeof(Digest)> greeting;
  co_await asio::async_read(socket, asio::buffer(greeting), into_error());
  if (error) {
    fail_handshake(protocol, deadline, error);
  }
  require(std::memcmp(greeting.data(), protocol.magic.data(), protocol.magic.size()) == 0,
          "{}: the other side is no {} of this version", protocol.name, protocol.server_name);
  Digest theirs;
  std::memcpy(theirs.data(), greeting.data() + protocol.magic.size(), theirs.size());

  const Digest mine = random_challenge();
  const std::array<Digest, 2> answer = {mine, token.sign({bytes_of(kClient), theirs, mine})};
  co_await asio::async_write(socket, asio::buffer(answer.data(), sizeof(answer)), into_error());
  Digest proof;
  if (!error) {
    co_await asio::async_read(socket, asio::buffer(proof.data(), proof.size()), into_error());
  }
  if (error) {
    fail_handshake(protocol, deadline, error);
  }
  require(equal(proof, token.sign({bytes_of(kServer), mine, theirs})), "{}: the {} does not know the job's token",
          protocol.name, protocol.server_name);
  co_return token.derive({bytes_of("session"), theirs, mine});
}

}  // namespace lockstep::control
