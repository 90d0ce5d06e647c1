// TLS 1.3 between workers and parameter servers (docs/server-protocol.md).
//
// A TlsContext is what a server shows, or whom a worker trusts; a TlsStream encrypts one connection. The server proves
// by its certificate that it is the one the worker means; the worker proves itself inside, by the job's token.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

#include "comm/control/asio.h"

struct bio_st;
struct ssl_ctx_st;
struct ssl_st;

namespace lockstep::server {

// May be used by several threads.
class TlsContext {
 public:
  // Of a server: PEM files with its certificate, followed by those between it and an authority, and with its private
  // key, without a pass phrase. Throws Error(kUsage) that names the file and what is wrong with it.
  [[nodiscard]] static std::shared_ptr<const TlsContext> of_server(const std::filesystem::path& certificate,
                                                                   const std::filesystem::path& key);
  // Of a worker: a PEM file with the certificates of authorities, or of servers that signed their own.
  [[nodiscard]] static std::shared_ptr<const TlsContext> of_worker(const std::filesystem::path& authorities);

 private:
  friend class TlsStream;
  struct Free {
    void operator()(ssl_ctx_st* context) const;
  };
  using Handle = std::unique_ptr<ssl_ctx_st, Free>;
  TlsContext(Handle handle, std::filesystem::path authorities);

  const Handle handle_;
  const std::filesystem::path authorities_;  // a worker's
};

// Encrypts what goes over a socket, which is always the same but may be moved between calls. Runs on the socket's
// thread. One read and one write may be under way at the same time. Memory of a caller is touched only while the
// socket is open.
class TlsStream {
 public:
  using Socket = boost::asio::ip::tcp::socket;
  template <typename T>
  using Awaitable = boost::asio::awaitable<T>;

  // `host`: a worker's server, by the name or address that its certificate has to be for.
  explicit TlsStream(const TlsContext& context, const std::string& host = {});

  // Comes first. Sets `error` when the connection ends. Throws Error(kUsage) when a side does not take the other's
  // certificate, or speaks something else.
  [[nodiscard]] Awaitable<void> handshake(Socket& socket, boost::system::error_code& error);
  // All of `to`, unless `error` is set. Throws Error(kCorrupt) for what the other side did not encrypt.
  [[nodiscard]] Awaitable<std::size_t> read(Socket& socket, std::span<std::byte> to, boost::system::error_code& error);
  // All of `from`, unless `error` is set. Short buffers that follow one another share a record.
  [[nodiscard]] Awaitable<std::size_t> write(Socket& socket, std::span<const boost::asio::const_buffer> from,
                                             boost::system::error_code& error);
  // When bytes last came, and last went.
  [[nodiscard]] std::chrono::steady_clock::time_point last_received() const { return last_received_; }
  [[nodiscard]] std::chrono::steady_clock::time_point last_sent() const { return last_sent_; }

 private:
  struct Free {
    void operator()(ssl_st* tls) const;
    void operator()(bio_st* end) const;
  };
  static constexpr std::size_t kRecordBytes = 16'384;  // the longest that TLS has

  [[nodiscard]] std::string handshake_problem() const;
  [[nodiscard]] Awaitable<void> write_record(Socket& socket, std::span<const std::byte> record,
                                             boost::system::error_code& error);
  // Between the socket and network_: all that waits to leave, some of what comes.
  [[nodiscard]] Awaitable<void> flush(Socket& socket, boost::system::error_code& error);
  [[nodiscard]] Awaitable<void> fill(Socket& socket, boost::system::error_code& error);

  const std::string host_;
  const std::filesystem::path authorities_;
  std::unique_ptr<ssl_st, Free> tls_;
  std::unique_ptr<bio_st, Free> network_;  // what tls_ has encrypted comes out here, and goes in to be decrypted
  std::array<std::byte, kRecordBytes> gathered_;
  std::uint64_t records_ = 0;  // written
  std::chrono::steady_clock::time_point last_received_ = {};
  std::chrono::steady_clock::time_point last_sent_ = {};
};

}  // namespace lockstep::server
