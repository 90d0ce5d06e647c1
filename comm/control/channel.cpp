#include "comm/control/channel.h"

#include <array>
#include <span>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "comm/control/handshake.h"

namespace lockstep::control {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;

constexpr Protocol kProtocol = {{'L', 'S', 'C', 'T', 0, 0, 0, 1}, "control", "coordinator"};

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

constexpr std::string_view kServer = "server";
constexpr std::string_view kClient = "client";

}  // namespace

struct Channel::Session {
  Socket socket;
  JobToken key;
  std::string_view own_role;
  std::string_view other_role;
  std::uint64_t sent = 0;
  std::uint64_t received = 0;

  [[nodiscard]] Digest code(std::string_view role, std::uint64_t number, std::string_view text) const {
    return key.sign({bytes_of(role), std::as_bytes(std::span(&number, 1)), bytes_of(text)});
  }
  static Session make(Socket socket, const JobToken& key, std::string_view own_role) {
    error_code ignored;
    socket.set_option(asio::ip::tcp::no_delay(true), ignored);
    return {std::move(socket), key, own_role, own_role == kServer ? kClient : kServer};
  }
};

Channel::Channel(Session&& session)
    : session_(std::make_unique<Session>(std::move(session))), drained_(session_->socket.get_executor()) {}
Channel::~Channel() = default;

Channel::Awaitable<std::shared_ptr<Channel>> Channel::accept(Socket& socket, JobToken token) {
  const JobToken key = co_await accept_handshake(socket, token, kProtocol);
  co_return std::make_shared<Channel>(Session::make(std::move(socket), key, kServer));
}

Channel::Awaitable<std::shared_ptr<Channel>> Channel::greet(Socket& socket, JobToken token) {
  const JobToken key = co_await greet_handshake(socket, token, kProtocol);
  co_return std::make_shared<Channel>(Session::make(std::move(socket), key, kClient));
}

Channel::Awaitable<std::string> Channel::receive() {
  const auto self = shared_from_this();
  Session& session = *session_;
  error_code error;
  const auto into_error = [&error] { return asio::redirect_error(asio::use_awaitable, error); };
  const auto check = [&error] {
    if (error) {
      fail(ErrorCode::kPeerLost, "control: the connection ended: {}", error.message());
    }
  };
  struct Header {
    std::array<unsigned char, 4> length;
    Digest code;
  } header;
  static_assert(sizeof(Header) == 36);
  co_await asio::async_read(session.socket, asio::buffer(&header, sizeof(header)), into_error());
  check();
  std::size_t length = 0;
  for (std::size_t i = 0; i < header.length.size(); ++i) {
    length |= std::size_t{header.length[i]} << (8 * i);
  }
  if (length > kMaxTextBytes) {
    fail(ErrorCode::kCorrupt, "control: a frame of {} bytes, expected at most {}", length, kMaxTextBytes);
  }
  std::string text(length, '\0');
  co_await asio::async_read(session.socket, asio::buffer(text), into_error());
  check();
  if (!equal(header.code, session.code(session.other_role, session.received, text))) {
    fail(ErrorCode::kCorrupt, "control: frame {} was not made by the other side", session.received);
  }
  ++session.received;
  co_return text;
}

void Channel::send(std::string text) {
  if (!session_->socket.is_open()) {
    return;
  }
  if (text.size() > kMaxTextBytes || queue_.size() >= kMaxQueued) {
    close();
    return;
  }
  queue_.push_back(std::move(text));
  if (!writing_) {
    writing_ = true;
    asio::co_spawn(session_->socket.get_executor(), write_queued(shared_from_this()), asio::detached);
  }
}

Channel::Awaitable<void> Channel::write_queued(std::shared_ptr<Channel> /*self*/) {
  Session& session = *session_;
  while (!queue_.empty() && session.socket.is_open()) {
    const std::string text = std::move(queue_.front());
    queue_.pop_front();
    const Digest code = session.code(session.own_role, session.sent++, text);
    std::array<unsigned char, 4> length;
    for (std::size_t i = 0; i < length.size(); ++i) {
      length[i] = static_cast<unsigned char>(text.size() >> (8 * i));
    }
    const std::array<asio::const_buffer, 3> frame = {asio::buffer(length), asio::buffer(code.data(), code.size()),
                                                     asio::buffer(text)};
    error_code error;
    co_await asio::async_write(session.socket, frame, asio::redirect_error(asio::use_awaitable, error));
    if (error) {
      close();
    }
  }
  writing_ = false;
  drained_.cancel();
}

Channel::Awaitable<void> Channel::flush(std::chrono::milliseconds deadline) {
  const auto self = shared_from_this();
  if (writing_) {
    error_code ended;
    drained_.expires_after(deadline);
    co_await drained_.async_wait(asio::redirect_error(asio::use_awaitable, ended));
  }
}

void Channel::close() {
  error_code ignored;
  session_->socket.close(ignored);
  queue_.clear();
}

}  // namespace lockstep::control
