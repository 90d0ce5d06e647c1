#include "comm/server/bare_stream.h"

#include <algorithm>
#include <array>
#include <thread>

#include "base/error.h"
#include "comm/control/asio.h"
#include "comm/server/protocol.h"

namespace lockstep::server {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

constexpr std::size_t kBlockBytes = kMaxPayloadBytes;

// For async_read() and async_write(), which otherwise move 64 KiB in a system call.
std::size_t all_at_once(const error_code& error, std::size_t) { return error ? 0 : kBlockBytes; }

// The server's end of a connection.
class Echo {
 public:
  explicit Echo(tcp::socket socket) : socket_(std::move(socket)) {
    error_code ignored;
    socket_.set_option(tcp::no_delay(true), ignored);
  }

  // A number of bytes, and then as many bytes; again and again.
  static asio::awaitable<void> run(std::shared_ptr<Echo> self) { co_await self->receive(self); }

 private:
  asio::awaitable<void> receive(const std::shared_ptr<Echo>& self) {
    error_code error;
    while (!error) {
      std::uint64_t size = 0;
      co_await asio::async_read(socket_, asio::buffer(&size, sizeof(size)),
                                asio::redirect_error(asio::use_awaitable, error));
      to_send_ += error ? 0 : size;
      if (!is_sending_ && to_send_ > 0) {
        is_sending_ = true;
        asio::co_spawn(socket_.get_executor(), send(self), asio::detached);
      }
      while (size > 0 && !error) {
        const std::size_t length = std::min<std::uint64_t>(size, kBlockBytes);
        co_await asio::async_read(socket_, asio::buffer(received_.data(), length), all_at_once,
                                  asio::redirect_error(asio::use_awaitable, error));
        size -= length;
      }
    }
    socket_.close(error);
  }

  static asio::awaitable<void> send(std::shared_ptr<Echo> self) {
    error_code error;
    while (self->to_send_ > 0 && !error) {
      const std::size_t length = std::min<std::uint64_t>(self->to_send_, kBlockBytes);
      self->to_send_ -= length;
      co_await asio::async_write(self->socket_, asio::buffer(self->sent_.data(), length), all_at_once,
                                 asio::redirect_error(asio::use_awaitable, error));
    }
    self->is_sending_ = false;
  }

  tcp::socket socket_;
  std::vector<std::byte> received_ = std::vector<std::byte>(kBlockBytes);
  const std::vector<std::byte> sent_ = std::vector<std::byte>(kBlockBytes);
  std::uint64_t to_send_ = 0;
  bool is_sending_ = false;
};

}  // namespace

class BareServer::Impl {
 public:
  Impl() {
    error_code error;
    const tcp::endpoint where(asio::ip::address_v4::loopback(), 0);
    acceptor_.open(where.protocol(), error);
    if (!error) {
      acceptor_.bind(where, error);
    }
    if (!error) {
      acceptor_.listen(asio::socket_base::max_listen_connections, error);
    }
    if (error) {
      fail(ErrorCode::kIo, "cannot listen on 127.0.0.1: {}", error.message());
    }
    asio::co_spawn(io_, accept_all(), asio::detached);
    thread_ = std::thread([this] { io_.run(); });
  }
  ~Impl() {
    io_.stop();
    thread_.join();
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  [[nodiscard]] std::uint16_t port() const { return acceptor_.local_endpoint().port(); }

 private:
  asio::awaitable<void> accept_all() {
    error_code error;
    while (!error) {
      tcp::socket socket(io_);
      co_await acceptor_.async_accept(socket, asio::redirect_error(asio::use_awaitable, error));
      if (!error) {
        asio::co_spawn(io_, Echo::run(std::make_shared<Echo>(std::move(socket))), asio::detached);
      }
    }
  }

  asio::io_context io_;
  tcp::acceptor acceptor_{io_};
  std::thread thread_;
};

class BareStream::Impl {
 public:
  explicit Impl(const std::vector<ServerAddress>& servers) {
    for (const ServerAddress& server : servers) {
      error_code error;
      tcp::resolver resolver(io_);
      const auto found = resolver.resolve(server.host, server.port, error);
      tcp::socket socket(io_);
      if (!error) {
        asio::connect(socket, found, error);
      }
      if (!error) {
        socket.set_option(tcp::no_delay(true), error);
      }
      check(error);
      sockets_.push_back(std::move(socket));
    }
  }

  void exchange(std::span<std::byte> data) {
    error_ = {};
    for (std::size_t server = 0; server < sockets_.size(); ++server) {
      const std::size_t begin = data.size() * server / sockets_.size();
      const std::size_t end = data.size() * (server + 1) / sockets_.size();
      const std::span<std::byte> part = data.subspan(begin, end - begin);
      asio::co_spawn(io_, send(sockets_[server], part), asio::detached);
      asio::co_spawn(io_, receive(sockets_[server], part), asio::detached);
    }
    io_.restart();
    io_.run();
    check(error_);
  }

 private:
  static void check(const error_code& error) {
    if (error) {
      fail(ErrorCode::kPeerLost, "the bare stream's server: {}", error.message());
    }
  }

  asio::awaitable<void> send(tcp::socket& socket, std::span<const std::byte> data) {
    error_code error;
    const std::uint64_t size = data.size();
    const std::size_t first = std::min(data.size(), kBlockBytes);
    const std::array<asio::const_buffer, 2> head = {asio::buffer(&size, sizeof(size)),
                                                    asio::buffer(data.data(), first)};
    co_await asio::async_write(socket, head, all_at_once, asio::redirect_error(asio::use_awaitable, error));
    for (std::size_t at = first; at < data.size() && !error; at += kBlockBytes) {
      co_await asio::async_write(socket, asio::buffer(data.data() + at, std::min(kBlockBytes, data.size() - at)),
                                 all_at_once, asio::redirect_error(asio::use_awaitable, error));
    }
    error_ = error ? error : error_;
  }

  asio::awaitable<void> receive(tcp::socket& socket, std::span<std::byte> data) {
    error_code error;
    for (std::size_t at = 0; at < data.size() && !error; at += kBlockBytes) {
      co_await asio::async_read(socket, asio::buffer(data.data() + at, std::min(kBlockBytes, data.size() - at)),
                                all_at_once, asio::redirect_error(asio::use_awaitable, error));
    }
    error_ = error ? error : error_;
  }

  asio::io_context io_;
  std::vector<tcp::socket> sockets_;
  error_code error_;
};

BareServer::BareServer() : impl_(std::make_unique<Impl>()) {}
BareServer::~BareServer() = default;
std::uint16_t BareServer::port() const { return impl_->port(); }

BareStream::BareStream(const std::vector<ServerAddress>& servers) : impl_(std::make_unique<Impl>(servers)) {}
BareStream::~BareStream() = default;
void BareStream::exchange(std::span<std::byte> data) { impl_->exchange(data); }

}  // namespace lockstep::server
