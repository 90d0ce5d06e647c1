// A worker's way to a parameter server: address, handshake, hello and welcome, again and again until it works out.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "base/error.h"
#include "comm/control/asio.h"
#include "comm/control/token.h"
#include "comm/server/connection.h"
#include "comm/server/session.h"
#include "comm/server/tls.h"

namespace lockstep::server {

// What a server says to a worker that it does not take, or to all: to try again is of no use.
class Refusal : public Error {
 public:
  using Error::Error;
  explicit Refusal(const Error& error) : Error(error) {}
};

// Connects the socket to it, or says why not: asio's timed_out when nobody answers for five seconds.
[[nodiscard]] boost::asio::awaitable<boost::system::error_code> reach(boost::asio::io_context& io,
                                                                      ServerAddress address,
                                                                      boost::asio::ip::tcp::socket& socket);

struct Dial {
  ServerAddress address;
  control::JobToken token = control::JobToken::random();
  std::shared_ptr<const TlsContext> tls = {};  // null: the connection is not encrypted
  Hello hello;
  std::chrono::milliseconds timeout{600'000};
  // A server whose port nobody listens at any more is not coming back.
  bool is_mortal = false;
};

struct Dialed {
  std::shared_ptr<Connection> connection;
  Welcome welcome;
};

// Throws Refusal; Error(kUsage) for a token that is not the server's; Error(kTimeout) when it has not answered for
// timeout.
[[nodiscard]] boost::asio::awaitable<Dialed> dial(boost::asio::io_context& io, Dial dial);

}  // namespace lockstep::server
