// An authenticated connection between a worker and a parameter server: frames (protocol.h) with a code each, over TCP.
//
// A header's code is made with a key that only this connection has, over the sender's role and the header, which holds
// the frame's number and a checksum of its payload: a frame can be neither made up, repeated, nor reordered, and damage
// shows. Nothing is encrypted unless both sides are given a TlsContext.
//
// Everything runs on the thread of the socket's io_context.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "comm/control/asio.h"
#include "comm/control/token.h"
#include "comm/server/protocol.h"
#include "comm/server/tls.h"

namespace lockstep::server {

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  using Clock = std::chrono::steady_clock;
  using Socket = boost::asio::ip::tcp::socket;
  template <typename T>
  using Awaitable = boost::asio::awaitable<T>;

  // The two ends of the handshake, which takes over `socket` in the end. `tls`: null for none. `host`: the server's
  // name or address, which its certificate has to be for. Throw what comm/control/handshake.h says, and Error(kUsage)
  // when one side wants TLS and the other does not, or does not take the certificate.
  [[nodiscard]] static Awaitable<std::shared_ptr<Connection>> accept(Socket& socket, control::JobToken token,
                                                                     std::shared_ptr<const TlsContext> tls = {});
  [[nodiscard]] static Awaitable<std::shared_ptr<Connection>> greet(Socket& socket, control::JobToken token,
                                                                    std::shared_ptr<const TlsContext> tls = {},
                                                                    std::string host = {});

  // The next frame, whose payload has to be read before another header. Throws Error(kPeerLost) at the end of the
  // connection, Error(kCorrupt) for a frame that is not the other side's, or not allowed.
  [[nodiscard]] Awaitable<FrameHeader> read_header();
  // payload.size() == header.payload_bytes.
  [[nodiscard]] Awaitable<void> read_payload(FrameHeader header, std::span<std::byte> payload);
  // The same for a frame whose payload is no data.
  [[nodiscard]] Awaitable<std::vector<std::byte>> read_small_payload(FrameHeader header);

  // Sends behind the caller's back, straight from `payload`, which `owner` keeps alive. `sent` is called when the
  // system has taken the frame over, and not at all when the connection ends before. After an error or close() this
  // does nothing: read_header() tells what happened. Fields sequence, payload_bytes and payload_hash are filled in
  // here, the last unless it is given.
  struct Outgoing {
    FrameHeader header;
    std::span<const std::byte> payload = {};
    std::shared_ptr<const void> owner = {};
    std::optional<std::uint64_t> payload_hash = {};
    std::function<void()> sent = {};
    // Where the payload is made at the last moment, so that not all of them lie in memory: sets `payload`.
    std::function<void(Outgoing&)> prepare = {};
  };
  void send(Outgoing frame);
  void send(FrameHeader header, std::vector<std::byte> payload);
  // Drops what waits to be sent, but for a frame that has begun to leave.
  void send_last(FrameHeader header, std::vector<std::byte> payload);

  // Done when everything that was sent has left, or after `deadline`.
  [[nodiscard]] Awaitable<void> flush(std::chrono::milliseconds deadline);
  // Afterwards no memory of a caller is read or written any more.
  void close();
  // Closes this after so long, unless the timer is cancelled or gone before.
  [[nodiscard]] boost::asio::steady_timer close_in(std::chrono::milliseconds time);
  // Whether both ends have the same address, and so are on one machine.
  [[nodiscard]] bool stays_on_machine() const;
  // When bytes last came, and last went.
  [[nodiscard]] Clock::time_point last_received() const;
  [[nodiscard]] Clock::time_point last_sent() const;

  // Use accept() and greet().
  Connection(Socket socket, std::unique_ptr<TlsStream> tls, const control::JobToken& key, std::string_view own_role,
             std::string_view other_role);

 private:
  [[nodiscard]] control::Digest code_of(std::string_view role, std::span<const std::byte> header) const;
  // `self`: this, which lives as long as it is written to, also before the coroutine first runs.
  [[nodiscard]] Awaitable<void> write_queued(std::shared_ptr<Connection> self);

  Socket socket_;
  const std::unique_ptr<TlsStream> tls_;  // null: nothing is encrypted
  const control::JobToken key_;
  const std::string_view own_role_;
  const std::string_view other_role_;
  std::uint64_t sent_ = 0;
  std::uint64_t received_ = 0;
  std::deque<Outgoing> queue_;
  bool writing_ = false;
  bool cannot_write_ = false;
  int low_water_ = 1;                  // how many bytes have to be there before the socket is said to be readable
  boost::asio::steady_timer drained_;  // cancelled when the queue runs empty
  Clock::time_point last_received_ = Clock::now();
  Clock::time_point last_sent_ = Clock::now();
};

}  // namespace lockstep::server
