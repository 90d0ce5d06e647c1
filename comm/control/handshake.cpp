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
// To a client with a wrong token. One that is just cut off may try again: servers do that when they are flooded.
constexpr Digest kUnknown = {};

class SocketWire final : public Wire {
 public:
  explicit SocketWire(tcp::socket& socket) : socket_(socket) {}

  [[nodiscard]] asio::awaitable<std::size_t> read(std::span<std::byte> to, error_code& error) override {
    return asio::async_read(socket_, asio::buffer(to.data(), to.size()),
                            asio::redirect_error(asio::use_awaitable, error));
  }
  [[nodiscard]] asio::awaitable<std::size_t> write(std::span<const std::byte> from, error_code& error) override {
    return asio::async_write(socket_, asio::buffer(from.data(), from.size()),
                             asio::redirect_error(asio::use_awaitable, error));
  }

 private:
  tcp::socket& socket_;
};

}  // namespace

void fail_handshake(const Protocol& protocol, const Deadline& deadline, const error_code& error) {
  if (deadline.expired()) {
    fail(ErrorCode::kTimeout, "{}: the other side did not finish the handshake within {} s", protocol.name,
         std::chrono::duration_cast<std::chrono::seconds>(kHandshakeDeadline).count());
  }
  fail(ErrorCode::kPeerLost, "{}: the other side left during the handshake: {}", protocol.name, error.message());
}

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
  SocketWire wire(socket);
  co_return co_await accept_handshake(wire, deadline, token, protocol);
}

asio::awaitable<JobToken> greet_handshake(tcp::socket& socket, JobToken token, Protocol protocol) {
  const Deadline deadline(socket, kHandshakeDeadline);
  SocketWire wire(socket);
  co_return co_await greet_handshake(wire, deadline, token, protocol);
}

asio::awaitable<JobToken> accept_handshake(Wire& wire, const Deadline& deadline, JobToken token, Protocol protocol) {
  error_code error;
  const Digest mine = random_challenge();
  std::array<std::byte, sizeof(protocol.magic) + sizeof(Digest)> greeting;
  std::memcpy(greeting.data(), protocol.magic.data(), protocol.magic.size());
  std::memcpy(greeting.data() + protocol.magic.size(), mine.data(), mine.size());
  co_await wire.write(greeting, error);

  std::array<Digest, 2> answer;  // challenge, code
  if (!error) {
    co_await wire.read(std::as_writable_bytes(std::span(answer)), error);
  }
  if (error) {
    fail_handshake(protocol, deadline, error);
  }
  if (!equal(answer[1], token.sign({bytes_of(kClient), mine, answer[0]}))) {
    co_await wire.write(kUnknown, error);
    fail(ErrorCode::kUsage, "{}: the other side does not know the job's token", protocol.name);
  }

  const Digest proof = token.sign({bytes_of(kServer), answer[0], mine});
  co_await wire.write(proof, error);
  if (error) {
    fail_handshake(protocol, deadline, error);
  }
  co_return token.derive({bytes_of("session"), mine, answer[0]});
}

asio::awaitable<JobToken> greet_handshake(Wire& wire, const Deadline& deadline, JobToken token, Protocol protocol) {
  error_code error;
  Protocol::Magic magic;
  Digest theirs;
  co_await wire.read(std::as_writable_bytes(std::span(magic)), error);
  if (!error) {
    require(magic != protocol.tls_magic, "{}: the {} takes TLS only, which comm.tls_ca turns on", protocol.name,
            protocol.server_name);
    require(magic == protocol.magic, "{}: the other side is no {} of this version", protocol.name,
            protocol.server_name);
    co_await wire.read(theirs, error);
  }
  if (error) {
    fail_handshake(protocol, deadline, error);
  }

  const Digest mine = random_challenge();
  const std::array<Digest, 2> answer = {mine, token.sign({bytes_of(kClient), theirs, mine})};
  co_await wire.write(std::as_bytes(std::span(answer)), error);
  Digest proof;
  if (!error) {
    co_await wire.read(proof, error);
  }
  if (error) {
    fail_handshake(protocol, deadline, error);
  }
  require(proof != kUnknown, "{}: the {} has another token than this process", protocol.name, protocol.server_name);
  require(equal(proof, token.sign({bytes_of(kServer), mine, theirs})), "{}: the {} does not know the job's token",
          protocol.name, protocol.server_name);
  co_return token.derive({bytes_of("session"), theirs, mine});
}

}  // namespace lockstep::control
