// How two processes of a job prove to each other that they know its token, at the start of a connection.
//
// All messages have a fixed size:
//   server -> client   magic with the protocol's version (8 bytes), 32 random bytes S
//   client -> server   32 random bytes C, sign("client", S, C)
//   server -> client   sign("server", C, S)
// What follows is authenticated with a key derived from the token, S and C, which no other connection has.
#pragma once

#include <array>
#include <chrono>
#include <memory>
#include <string_view>

#include "comm/control/asio.h"
#include "comm/control/token.h"

namespace lockstep::control {

inline constexpr std::chrono::milliseconds kHandshakeDeadline{5'000};

// What is spoken after the handshake.
struct Protocol {
  std::array<char, 8> magic;
  std::string_view name;         // begins messages
  std::string_view server_name;  // who accepts, in messages
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

// The two ends. Return the connection's key. Throw Error(kUsage) when the other side does not know the token or speaks
// something else, Error(kPeerLost) when it leaves, Error(kTimeout) after kHandshakeDeadline, which closes the socket.
[[nodiscard]] boost::asio::awaitable<JobToken> accept_handshake(boost::asio::ip::tcp::socket& socket, JobToken token,
                                                                Protocol protocol);
[[nodiscard]] boost::asio::awaitable<JobToken> greet_handshake(boost::asio::ip::tcp::socket& socket, JobToken token,
                                                               Protocol protocol);

}  // namespace lockstep::control
