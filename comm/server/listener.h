// Takes connections of a job's workers: those that prove that they know its token and say who they are in time are
// handed on, the others cut off. Who only asks for signs of life (pulse.h) is answered here.
// Runs on the thread of its io_context.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "base/log.h"
#include "comm/control/asio.h"
#include "comm/control/token.h"
#include "comm/server/connection.h"

namespace lockstep::server {

class Listener {
 public:
  struct Options {
    control::JobToken token = control::JobToken::random();
    std::string listen;                          // a numeric address of this machine
    std::uint16_t port = 0;                      // 0: any that is free
    std::shared_ptr<const TlsContext> tls = {};  // null: connections are not encrypted
    std::function<void(LogLevel, const std::string&)> say = {};
  };
  // Has the connection until it returns; the bytes are its hello's. An Error that it throws is sent to the worker: it
  // was not admitted.
  using Serve = std::function<boost::asio::awaitable<void>(std::shared_ptr<Connection>, std::vector<std::byte>)>;

  // Throws Error(kUsage) for an address that is none, Error(kIo) when it cannot be had.
  Listener(boost::asio::io_context& io, Options options, Serve serve);

  [[nodiscard]] std::uint16_t port() const { return port_; }

 private:
  struct Pending {
    boost::asio::ip::tcp::socket socket;
    boost::asio::ip::tcp::endpoint from;
  };
  [[nodiscard]] boost::asio::awaitable<void> accept_all();
  [[nodiscard]] boost::asio::awaitable<void> serve_one(std::list<Pending>::iterator place);
  void make_room();
  [[nodiscard]] boost::asio::awaitable<void> serve_connection(std::shared_ptr<Connection> connection);

  boost::asio::io_context& io_;
  const Options options_;
  const Serve serve_;
  boost::asio::ip::tcp::acceptor acceptor_;
  std::uint16_t port_ = 0;
  std::list<Pending> pending_;
  int refusals_ = 0;
};

}  // namespace lockstep::server
