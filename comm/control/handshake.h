// How two processes of a job prove to each other that they know its token, at the start of a connection.
//
// All messages have a fixed size:
//   server -> client   magic with the protocol's version (8 bytes), 32 random bytes S
//   client -> server   32 random bytes C, sign("client", S, C)
//   server -> client   sign("server", C, S), or 32 zeros to a client that does not know the token
// A server that encrypts sends another magic first, and all of this inside TLS (comm/server/tls.h). What follows is
// authenticated with a key derived from the token, S and C, which no other connection has.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include "comm/control/asio.h"
#include "comm/control/token.h"

namespace lockstep::control {

inline constexpr std::chrono::milliseconds kHandshakeDeadline{5'000};

// What is spoken after the handshake.
struct Protocol {
  using Magic = std::array<char, 8>;

  Magic magic;
  std::string_view name;                // begins messages
  std::string_view server_name;         // who accepts, in messages
  std::optional<Magic> tls_magic = {};  // what a server that encrypts sends before TLS, in protocols that have it
};

// Cuts a connection off that takes longer than allowed, unless it is gone before.
class Deadline {
 public:
  Deadline(boost::asio::ip::tcp::socket& socket, std::chrono::milliseconds length);
  // The socket may go before the timer's handler has run.
  ~Deadline() { *state_ = State::kOver; }
  Deadline(const Deadline&) = delete;
  Deadline& operator=(const Deadline&) = delete;

  [[nodiscard]] bool expired() const { return *state_ == State::kExpired; }

 private:
  enum class State { kRunning, kExpired, kOver };
  std::shared_ptr<State> state_ = std::make_shared<State>(State::kRunning);
  boost::asio::steady_timer timer_;
};

// What the messages travel over.
class Wire {
 public:
  virtual ~Wire() = default;
  // All of it, unless `error` is set.
  [[nodiscard]] virtual boost::asio::awaitable<std::size_t> read(std::span<std::byte> to,
                                                                 boost::system::error_code& error) = 0;
  [[nodiscard]] virtual boost::asio::awaitable<std::size_t> write(std::span<const std::byte> from,
                                                                  boost::system::error_code& error) = 0;
};

// The two ends. Return the connection's key. Throw Error(kUsage) when the other side does not know the token or speaks
// something else, Error(kPeerLost) when it leaves, Error(kTimeout) after kHandshakeDeadline, which closes the socket.
[[nodiscard]] boost::asio::awaitable<JobToken> accept_handshake(boost::asio::ip::tcp::socket& socket, JobToken token,
                                                                Protocol protocol);
[[nodiscard]] boost::asio::awaitable<JobToken> greet_handshake(boost::asio::ip::tcp::socket& socket, JobToken token,
                                                               Protocol protocol);
// The same as part of something longer, which has the deadline. Both stay the caller's.
[[nodiscard]] boost::asio::awaitable<JobToken> accept_handshake(Wire& wire, const Deadline& deadline, JobToken token,
                                                                Protocol protocol);
[[nodiscard]] boost::asio::awaitable<JobToken> greet_handshake(Wire& wire, const Deadline& deadline, JobToken token,
                                                               Protocol protocol);

// How a handshake ends in which reading or writing failed: Error(kTimeout, kPeerLost).
[[noreturn]] void fail_handshake(const Protocol& protocol, const Deadline& deadline,
                                 const boost::system::error_code& error);

}  // namespace lockstep::control
