#include "comm/server/connection.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "comm/control/handshake.h"

namespace lockstep::server {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;

constexpr control::Protocol kProtocol = {.magic = {'L', 'S', 'P', 'S', 0, 0, 0, 3},
                                         .name = "server",
                                         .server_name = "parameter server",
                                         .tls_magic = control::Protocol::Magic{'L', 'S', 'P', 'S', 0, 0, 1, 3}};
constexpr std::string_view kServer = "server";
constexpr std::string_view kWorker = "worker";

// The same token may be used by the control channel: what is said there proves nothing here.
control::JobToken own_token(const control::JobToken& token) {
  constexpr std::string_view kPurpose = "parameter server";
  return token.derive({std::as_bytes(std::span(kPurpose))});
}

// A peer whose machine or link is gone sends nothing that would tell: the system asks it, and gives up after a minute.
void watch_over(Connection::Socket& socket) {
  constexpr int kOn = 1;
  constexpr int kIdleS = 30;
  constexpr int kIntervalS = 10;
  constexpr int kProbes = 3;
  constexpr unsigned kUnansweredMs = 60'000;
  const int handle = socket.native_handle();
  // Options that a system lacks are done without: comm.timeout_s finds the same, later.
  (void)::setsockopt(handle, IPPROTO_TCP, TCP_NODELAY, &kOn, sizeof(kOn));
  (void)::setsockopt(handle, SOL_SOCKET, SO_KEEPALIVE, &kOn, sizeof(kOn));
  (void)::setsockopt(handle, IPPROTO_TCP, TCP_KEEPIDLE, &kIdleS, sizeof(kIdleS));
  (void)::setsockopt(handle, IPPROTO_TCP, TCP_KEEPINTVL, &kIntervalS, sizeof(kIntervalS));
  (void)::setsockopt(handle, IPPROTO_TCP, TCP_KEEPCNT, &kProbes, sizeof(kProbes));
  (void)::setsockopt(handle, IPPROTO_TCP, TCP_USER_TIMEOUT, &kUnansweredMs, sizeof(kUnansweredMs));
}

// For async_write(), which otherwise moves 64 KiB in a system call. Notes when something moved.
auto all_at_once(Connection::Clock::time_point& last_moved) {
  return [&last_moved](const error_code& error, std::size_t moved) {
    last_moved = moved > 0 ? Connection::Clock::now() : last_moved;
    return error ? 0 : kHeaderBytes + kCodeBytes + kMaxPayloadBytes;
  };
}

// A frame's header, code and payload.
using FrameBuffers = std::array<asio::const_buffer, 3>;

// All of `to`, unless `error` is set. To be woken costs more than to copy what came, so a reader that wants much sleeps
// until much is there. `low_water`: the socket's SO_RCVLOWAT, which is kept at what is still to come or below.
asio::awaitable<std::size_t> read_all(Connection::Socket& socket, std::span<std::byte> to, int& low_water,
                                      Connection::Clock::time_point& moved, error_code& error) {
  constexpr std::size_t kWakeBytes = std::size_t{256} << 10;
  std::size_t done = 0;
  while (done < to.size()) {
    const int wanted = static_cast<int>(std::min(to.size() - done, kWakeBytes));
    if (wanted < low_water || wanted == static_cast<int>(kWakeBytes)) {
      if (wanted != low_water &&
          ::setsockopt(socket.native_handle(), SOL_SOCKET, SO_RCVLOWAT, &wanted, sizeof(wanted)) == 0) {
        low_water = wanted;
      }
    }
    done += co_await socket.async_read_some(asio::buffer(to.data() + done, to.size() - done),
                                            asio::redirect_error(asio::use_awaitable, error));
    if (error) {
      break;
    }
    moved = Connection::Clock::now();
  }
  co_return done;
}

// `tls`: null for none. `moved` is told when bytes did, which a TLS stream knows itself.
asio::awaitable<std::size_t> read_from(Connection::Socket& socket, TlsStream* tls, std::span<std::byte> to,
                                       int& low_water, Connection::Clock::time_point& moved, error_code& error) {
  if (tls != nullptr) {
    return tls->read(socket, to, error);
  }
  return read_all(socket, to, low_water, moved, error);
}

// `from` stays the caller's until the end.
asio::awaitable<std::size_t> write_to(Connection::Socket& socket, TlsStream* tls, const FrameBuffers& from,
                                      Connection::Clock::time_point& moved, error_code& error) {
  if (tls != nullptr) {
    return tls->write(socket, from, error);
  }
  return asio::async_write(socket, from, all_at_once(moved), asio::redirect_error(asio::use_awaitable, error));
}

class HandshakeWire final : public control::Wire {
 public:
  HandshakeWire(Connection::Socket& socket, TlsStream* tls) : socket_(socket), tls_(tls) {}

  [[nodiscard]] asio::awaitable<std::size_t> read(std::span<std::byte> to, error_code& error) override {
    return read_from(socket_, tls_, to, low_water_, moved_, error);
  }
  [[nodiscard]] asio::awaitable<std::size_t> write(std::span<const std::byte> from, error_code& error) override {
    buffers_ = {asio::buffer(from.data(), from.size())};
    return write_to(socket_, tls_, buffers_, moved_, error);
  }

 private:
  Connection::Socket& socket_;
  TlsStream* const tls_;
  FrameBuffers buffers_;
  int low_water_ = 1;
  Connection::Clock::time_point moved_;
};

// TLS begins after the server's word that it does, so that each side can tell at once that the other does not.
asio::awaitable<std::unique_ptr<TlsStream>> accept_tls(Connection::Socket& socket, const control::Deadline& deadline,
                                                       std::shared_ptr<const TlsContext> context) {
  auto tls = std::make_unique<TlsStream>(*context);
  error_code error;
  co_await asio::async_write(socket, asio::buffer(*kProtocol.tls_magic),
                             asio::redirect_error(asio::use_awaitable, error));
  if (!error) {
    co_await tls->handshake(socket, error);
  }
  if (error) {
    control::fail_handshake(kProtocol, deadline, error);
  }
  co_return tls;
}

asio::awaitable<std::unique_ptr<TlsStream>> greet_tls(Connection::Socket& socket, const control::Deadline& deadline,
                                                      std::shared_ptr<const TlsContext> context, std::string host) {
  auto tls = std::make_unique<TlsStream>(*context, host);
  error_code error;
  control::Protocol::Magic magic;
  co_await asio::async_read(socket, asio::buffer(magic), asio::redirect_error(asio::use_awaitable, error));
  if (!error) {
    require(magic != kProtocol.magic,
            "server: the parameter server does not encrypt, which comm.tls_ca asks for; start "
            "it with --tls-cert and --tls-key");
    require(magic == kProtocol.tls_magic, "server: the other side is no parameter server of this version");
    co_await tls->handshake(socket, error);
  }
  if (error) {
    control::fail_handshake(kProtocol, deadline, error);
  }
  co_return tls;
}

void check(const error_code& error) {
  if (error) {
    fail(ErrorCode::kPeerLost, "server: the connection ended: {}", error.message());
  }
}

}  // namespace

Connection::Connection(Socket socket, std::unique_ptr<TlsStream> tls, const control::JobToken& key,
                       std::string_view own_role, std::string_view other_role)
    : socket_(std::move(socket)),
      tls_(std::move(tls)),
      key_(key),
      own_role_(own_role),
      other_role_(other_role),
      drained_(socket_.get_executor()) {
  watch_over(socket_);
}

Connection::Awaitable<std::shared_ptr<Connection>> Connection::accept(Socket& socket, control::JobToken token,
                                                                      std::shared_ptr<const TlsContext> tls) {
  const control::Deadline deadline(socket, control::kHandshakeDeadline);
  std::unique_ptr<TlsStream> stream;
  if (tls) {
    stream = co_await accept_tls(socket, deadline, tls);
  }
  HandshakeWire wire(socket, stream.get());
  const control::JobToken key = co_await control::accept_handshake(wire, deadline, own_token(token), kProtocol);
  co_return std::make_shared<Connection>(std::move(socket), std::move(stream), key, kServer, kWorker);
}

Connection::Awaitable<std::shared_ptr<Connection>> Connection::greet(Socket& socket, control::JobToken token,
                                                                     std::shared_ptr<const TlsContext> tls,
                                                                     std::string host) {
  const control::Deadline deadline(socket, control::kHandshakeDeadline);
  std::unique_ptr<TlsStream> stream;
  if (tls) {
    stream = co_await greet_tls(socket, deadline, tls, host);
  }
  HandshakeWire wire(socket, stream.get());
  const control::JobToken key = co_await control::greet_handshake(wire, deadline, own_token(token), kProtocol);
  co_return std::make_shared<Connection>(std::move(socket), std::move(stream), key, kWorker, kServer);
}

control::Digest Connection::code_of(std::string_view role, std::span<const std::byte> header) const {
  return key_.sign({std::as_bytes(std::span(role)), header});
}

Connection::Awaitable<FrameHeader> Connection::read_header() {
  const auto self = shared_from_this();
  std::array<std::byte, kHeaderBytes + kCodeBytes> bytes;
  error_code error;
  co_await read_from(socket_, tls_.get(), bytes, low_water_, last_received_, error);
  check(error);
  last_received_ = Clock::now();
  const auto header_bytes = std::span(bytes).first<kHeaderBytes>();
  control::Digest expected = code_of(other_role_, header_bytes);
  control::Digest found = expected;
  std::memcpy(found.data(), bytes.data() + kHeaderBytes, kCodeBytes);
  if (!control::equal(found, expected)) {
    fail(ErrorCode::kCorrupt, "server: frame {} was not made by the other side", received_);
  }
  const FrameHeader header = decode(header_bytes);
  if (header.sequence != received_) {
    fail(ErrorCode::kCorrupt, "server: frame {} came where frame {} was expected", header.sequence, received_);
  }
  ++received_;
  co_return header;
}

Connection::Awaitable<void> Connection::read_payload(FrameHeader header, std::span<std::byte> payload) {
  assert(payload.size() == header.payload_bytes);
  const auto self = shared_from_this();
  error_code error;
  co_await read_from(socket_, tls_.get(), payload, low_water_, last_received_, error);
  check(error);
  if (payload_hash_of(payload) != header.payload_hash) {
    fail(ErrorCode::kCorrupt, "server: the payload of frame {} is damaged", header.sequence);
  }
}

Connection::Awaitable<std::vector<std::byte>> Connection::read_small_payload(FrameHeader header) {
  if (header.payload_bytes > kMaxTextPayloadBytes) {
    fail(ErrorCode::kCorrupt, "server: a frame of type {} where none with data was expected",
         static_cast<int>(header.type));
  }
  std::vector<std::byte> payload(header.payload_bytes);
  co_await read_payload(header, payload);
  co_return payload;
}

void Connection::send(Outgoing frame) {
  if (!socket_.is_open() || cannot_write_) {
    return;
  }
  queue_.push_back(std::move(frame));
  if (!writing_) {
    writing_ = true;
    asio::co_spawn(socket_.get_executor(), write_queued(shared_from_this()), asio::detached);
  }
}

void Connection::send(FrameHeader header, std::vector<std::byte> payload) {
  const auto owner = std::make_shared<const std::vector<std::byte>>(std::move(payload));
  send(Outgoing{.header = header, .payload = *owner, .owner = owner});
}

void Connection::send_last(FrameHeader header, std::vector<std::byte> payload) {
  queue_.clear();
  send(header, std::move(payload));
}

Connection::Awaitable<void> Connection::write_queued(std::shared_ptr<Connection> /*self*/) {
  while (!queue_.empty() && socket_.is_open()) {
    Outgoing frame = std::move(queue_.front());
    queue_.pop_front();
    if (frame.prepare) {
      frame.prepare(frame);
    }
    frame.header.sequence = sent_++;
    frame.header.payload_bytes = static_cast<std::uint32_t>(frame.payload.size());
    frame.header.payload_hash = frame.payload_hash ? *frame.payload_hash : payload_hash_of(frame.payload);
    const std::array<std::byte, kHeaderBytes> header = encode(frame.header);
    const control::Digest code = code_of(own_role_, header);
    const FrameBuffers buffers = {asio::buffer(header), asio::buffer(code.data(), kCodeBytes),
                                  asio::buffer(frame.payload.data(), frame.payload.size())};
    error_code error;
    co_await write_to(socket_, tls_.get(), buffers, last_sent_, error);
    if (error) {
      // The other side may have said why it ended the connection: that is still to be read.
      cannot_write_ = true;
      queue_.clear();
      break;
    }
    if (frame.sent) {
      frame.sent();
    }
  }
  writing_ = false;
  drained_.cancel();
}

Connection::Awaitable<void> Connection::flush(std::chrono::milliseconds deadline) {
  const auto self = shared_from_this();
  if (writing_) {
    error_code ended;
    drained_.expires_after(deadline);
    co_await drained_.async_wait(asio::redirect_error(asio::use_awaitable, ended));
  }
}

bool Connection::stays_on_machine() const {
  error_code error;
  const auto own = socket_.local_endpoint(error);
  const auto other = error ? own : socket_.remote_endpoint(error);
  return !error && own.address() == other.address();
}

Connection::Clock::time_point Connection::last_received() const {
  return tls_ ? std::max(last_received_, tls_->last_received()) : last_received_;
}

Connection::Clock::time_point Connection::last_sent() const {
  return tls_ ? std::max(last_sent_, tls_->last_sent()) : last_sent_;
}

void Connection::close() {
  error_code ignored;
  socket_.close(ignored);
  queue_.clear();
}

asio::steady_timer Connection::close_in(std::chrono::milliseconds time) {
  asio::steady_timer timer(socket_.get_executor(), time);
  timer.async_wait([self = shared_from_this()](const error_code& cancelled) {
    if (!cancelled) {
      self->close();
    }
  });
  return timer;
}

}  // namespace lockstep::server
