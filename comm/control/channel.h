// An authenticated connection between two processes of a job, over TCP.
//
// Both sides know the job's token and begin with the handshake of handshake.h (magic "LSCT", version). Then each side
// sends frames: length of the text (uint32, little-endian, at most kMaxTextBytes), an authentication
// code and the text. The code is made with the connection's key, over the sender's role, the number of
// the frame and the text, so that a frame can be neither made up, repeated, nor reordered. Texts are not encrypted.
//
// Everything runs on the thread of the socket's io_context.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>

#include "comm/control/asio.h"
#include "comm/control/token.h"

namespace lockstep::control {

class Channel : public std::enable_shared_from_this<Channel> {
 public:
  using Socket = boost::asio::ip::tcp::socket;
  template <typename T>
  using Awaitable = boost::asio::awaitable<T>;

  static constexpr std::size_t kMaxTextBytes = std::size_t{1} << 20;
  // Texts that wait for a peer that does not read; more end the connection.
  static constexpr std::size_t kMaxQueued = 64;

  // The two ends of the handshake, whose errors they throw. `socket` is taken over in the end.
  [[nodiscard]] static Awaitable<std::shared_ptr<Channel>> accept(Socket& socket, JobToken token);
  [[nodiscard]] static Awaitable<std::shared_ptr<Channel>> greet(Socket& socket, JobToken token);

  // The next text. Throws Error(kPeerLost) at the end of the connection, Error(kCorrupt) for a frame that is not the
  // other side's.
  [[nodiscard]] Awaitable<std::string> receive();
  // Sends behind the caller's back. After an error or close() it does nothing: receive() tells what happened.
  void send(std::string text);
  // Nothing waits to be sent.
  [[nodiscard]] bool idle() const { return !writing_; }
  // Done when everything that was sent has left, or after `deadline`.
  [[nodiscard]] Awaitable<void> flush(std::chrono::milliseconds deadline);
  void close();

  // Use accept() and greet().
  struct Session;
  explicit Channel(Session&& session);
  ~Channel();

 private:
  // `self`: this, which lives as long as it is written to, also before the coroutine first runs.
  [[nodiscard]] Awaitable<void> write_queued(std::shared_ptr<Channel> self);

  std::unique_ptr<Session> session_;
  std::deque<std::string> queue_;
  bool writing_ = false;
  boost::asio::steady_timer drained_;  // cancelled when the queue runs empty
};

}  // namespace lockstep::control
