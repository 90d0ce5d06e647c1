#include "comm/server/tls.h"

#include <fmt/format.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <cassert>
#include <cstring>
#include <system_error>
#include <utility>

#include "base/error.h"

namespace lockstep::server {
namespace {

namespace asio = boost::asio;
namespace fs = std::filesystem;
using boost::system::error_code;

// Of encrypted bytes in each direction: eight full records, with what TLS adds to each.
constexpr std::size_t kRingBytes = std::size_t{8} * (16'384 + 256);
// A key of AES-GCM is good for 2^24 records (RFC 8446, 5.5). A new one costs microseconds.
constexpr std::uint64_t kRecordsOfAKey = 4096;

std::string text_of(unsigned long error) {
  if (ERR_SYSTEM_ERROR(error)) {
    return std::generic_category().message(ERR_GET_REASON(error));
  }
  const char* const text = ERR_reason_error_string(error);
  return text != nullptr ? text : "no reason given";
}

// What made the last call of OpenSSL fail.
std::string reason() { return text_of(ERR_peek_error()); }

void check(bool condition, const char* what) {
  if (!condition) {
    fail(ErrorCode::kIo, "server: OpenSSL: {}: {}", what, reason());
  }
}

struct FreePem {
  void operator()(BIO* file) const { BIO_free(file); }
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};

std::unique_ptr<BIO, FreePem> open_pem(const fs::path& path) {
  ERR_clear_error();
  std::unique_ptr<BIO, FreePem> file(BIO_new_file(path.c_str(), "r"));
  require(file != nullptr, "server: cannot read {}: {}", path.string(), reason());
  return file;
}

SSL_CTX* new_context(const SSL_METHOD* method) {
  ERR_clear_error();
  SSL_CTX* const context = SSL_CTX_new(method);
  check(context != nullptr, "a context");
  return context;
}

// Of the three, the one that takes the least time where processors know AES.
constexpr const char* kCiphers = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";

void set_protocol(SSL_CTX* context) {
  check(SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) == 1, "TLS 1.3");
  check(SSL_CTX_set_ciphersuites(context, kCiphers) == 1, "ciphers");
  // Connections are few and long: none is resumed.
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_num_tickets(context, 0);
}

}  // namespace

void TlsContext::Free::operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
void TlsStream::Free::operator()(SSL* tls) const { SSL_free(tls); }
void TlsStream::Free::operator()(BIO* end) const { BIO_free(end); }

TlsContext::TlsContext(Handle handle, fs::path authorities)
    : handle_(std::move(handle)), authorities_(std::move(authorities)) {}

std::shared_ptr<const TlsContext> TlsContext::of_server(const fs::path& certificate, const fs::path& key) {
  Handle context(new_context(TLS_server_method()));
  set_protocol(context.get());
  (void)open_pem(certificate);
  require(SSL_CTX_use_certificate_chain_file(context.get(), certificate.c_str()) == 1,
          "server: {} holds no certificate in PEM", certificate.string());

  const auto file = open_pem(key);
  std::error_code problem;
  constexpr fs::perms kOthers = fs::perms::others_read | fs::perms::others_write;
  require((fs::status(key, problem).permissions() & kOthers) == fs::perms::none,
          "server: everybody may read or write the private key {}, expected mode 0600", key.string());
  // Without a pass phrase: nobody would be there to type it.
  const auto no_pass_phrase = [](char*, int, int, void*) { return -1; };
  const std::unique_ptr<EVP_PKEY, FreePem> secret(
      PEM_read_bio_PrivateKey(file.get(), nullptr, no_pass_phrase, nullptr));
  require(secret != nullptr, "server: {} holds no private key in PEM without a pass phrase", key.string());
  require(SSL_CTX_use_PrivateKey(context.get(), secret.get()) == 1 && SSL_CTX_check_private_key(context.get()) == 1,
          "server: {} is not the private key of the certificate in {}", key.string(), certificate.string());
  return std::shared_ptr<const TlsContext>(new TlsContext(std::move(context), {}));
}

std::shared_ptr<const TlsContext> TlsContext::of_worker(const fs::path& authorities) {
  Handle context(new_context(TLS_client_method()));
  set_protocol(context.get());
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
  (void)open_pem(authorities);
  require(SSL_CTX_load_verify_locations(context.get(), authorities.c_str(), nullptr) == 1,
          "server: {} holds no certificate in PEM", authorities.string());
  return std::shared_ptr<const TlsContext>(new TlsContext(std::move(context), authorities));
}

TlsStream::TlsStream(const TlsContext& context, const std::string& host)
    : host_(host), authorities_(context.authorities_) {
  ERR_clear_error();
  tls_.reset(SSL_new(context.handle_.get()));
  check(tls_ != nullptr, "a connection");
  BIO* own = nullptr;
  BIO* network = nullptr;
  check(BIO_new_bio_pair(&own, kRingBytes, &network, kRingBytes) == 1, "buffers");
  network_.reset(network);
  SSL_set_bio(tls_.get(), own, own);
  if (authorities_.empty()) {
    SSL_set_accept_state(tls_.get());
    return;
  }
  SSL_set_connect_state(tls_.get());
  error_code is_name;
  asio::ip::make_address(host_, is_name);
  if (is_name) {
    SSL_set_hostflags(tls_.get(), X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    check(SSL_set1_host(tls_.get(), host_.c_str()) == 1, "the server's name");
    check(SSL_set_tlsext_host_name(tls_.get(), host_.c_str()) == 1, "the server's name");
  } else {
    // Without an IPv6 address's zone, which is this machine's own.
    const std::string address = host_.substr(0, host_.find('%'));
    check(X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(tls_.get()), address.c_str()) == 1, "the server's address");
  }
}

std::string TlsStream::handshake_problem() const {
  const unsigned long error = ERR_peek_error();
  const long verified = SSL_get_verify_result(tls_.get());
  if (!authorities_.empty() && verified != X509_V_OK) {
    const bool is_for_others = verified == X509_V_ERR_HOSTNAME_MISMATCH || verified == X509_V_ERR_IP_ADDRESS_MISMATCH;
    return is_for_others
               ? fmt::format("server: the parameter server's certificate is not for {}", host_)
               : fmt::format("server: comm.tls_ca {} does not bear out the parameter server's certificate: {}",
                             authorities_.string(), X509_verify_cert_error_string(verified));
  }
  const int alert = ERR_GET_REASON(error) - SSL_AD_REASON_OFFSET;
  if (ERR_GET_LIB(error) == ERR_LIB_SSL && alert > 0) {
    return fmt::format("server: the other side ended the TLS handshake: {}", SSL_alert_desc_string_long(alert));
  }
  return fmt::format("server: the other side does not speak TLS 1.3: {}", text_of(error));
}

asio::awaitable<void> TlsStream::handshake(Socket& socket, error_code& error) {
  while (true) {
    ERR_clear_error();
    const int done = SSL_do_handshake(tls_.get());
    const int want = SSL_get_error(tls_.get(), done);
    const bool goes_on = want == SSL_ERROR_NONE || want == SSL_ERROR_WANT_READ || want == SSL_ERROR_WANT_WRITE;
    const std::string problem = goes_on ? "" : handshake_problem();
    co_await flush(socket, error);  // also of what tells the other side about a problem
    require(problem.empty(), "{}", problem);
    if (!error && want == SSL_ERROR_WANT_READ) {
      co_await fill(socket, error);
    }
    if (error || done == 1) {
      co_return;
    }
  }
}

asio::awaitable<std::size_t> TlsStream::read(Socket& socket, std::span<std::byte> to, error_code& error) {
  error = {};
  std::size_t done = 0;
  while (done < to.size() && !error) {
    // Closed while bytes were under way to here: `to` may be gone.
    if (!socket.is_open()) {
      error = asio::error::operation_aborted;
      break;
    }
    ERR_clear_error();
    std::size_t got = 0;
    const int is_read = SSL_read_ex(tls_.get(), to.data() + done, to.size() - done, &got);
    if (is_read == 1) {
      done += got;
      continue;
    }
    const int want = SSL_get_error(tls_.get(), is_read);
    if (want == SSL_ERROR_WANT_READ) {
      co_await fill(socket, error);
    } else if (want == SSL_ERROR_ZERO_RETURN) {
      error = asio::error::eof;
    } else {
      fail(ErrorCode::kCorrupt, "server: what came is not what the other side encrypted: {}", reason());
    }
  }
  co_return done;
}

asio::awaitable<std::size_t> TlsStream::write(Socket& socket, std::span<const asio::const_buffer> from,
                                              error_code& error) {
  error = {};
  std::size_t done = 0;
  std::size_t gathered = 0;
  for (const asio::const_buffer& buffer : from) {
    auto left = std::span(static_cast<const std::byte*>(buffer.data()), buffer.size());
    while (!left.empty() && !error) {
      if (gathered == 0 && left.size() >= kRecordBytes) {
        co_await write_record(socket, left.first(kRecordBytes), error);
        left = left.subspan(kRecordBytes);
        done += kRecordBytes;
        continue;
      }
      const std::size_t more = std::min(left.size(), kRecordBytes - gathered);
      std::memcpy(gathered_.data() + gathered, left.data(), more);
      left = left.subspan(more);
      done += more;
      gathered = (gathered + more) % kRecordBytes;
      if (gathered == 0) {
        co_await write_record(socket, gathered_, error);
      }
    }
  }
  if (gathered > 0 && !error) {
    co_await write_record(socket, std::span(gathered_).first(gathered), error);
  }
  if (!error) {
    co_await flush(socket, error);
  }
  co_return done;
}

asio::awaitable<void> TlsStream::write_record(Socket& socket, std::span<const std::byte> record, error_code& error) {
  if (++records_ % kRecordsOfAKey == 0) {
    // Into an empty ring, so that the change of keys is not left half sent, which a read would have to finish.
    co_await flush(socket, error);
    if (!error && SSL_key_update(tls_.get(), SSL_KEY_UPDATE_NOT_REQUESTED) != 1) {
      error = asio::error::connection_aborted;
    }
  }
  while (!error) {
    if (!socket.is_open()) {
      error = asio::error::operation_aborted;
      break;
    }
    ERR_clear_error();
    std::size_t written = 0;
    const int is_written = SSL_write_ex(tls_.get(), record.data(), record.size(), &written);
    if (is_written == 1) {
      assert(written == record.size());
      break;
    }
    if (SSL_get_error(tls_.get(), is_written) == SSL_ERROR_WANT_WRITE) {
      co_await flush(socket, error);
    } else {
      error = asio::error::connection_aborted;
    }
  }
}

asio::awaitable<void> TlsStream::flush(Socket& socket, error_code& error) {
  while (!error && BIO_pending(network_.get()) > 0) {
    char* from = nullptr;
    const int length = BIO_nread0(network_.get(), &from);
    const std::size_t sent = co_await socket.async_write_some(asio::buffer(from, static_cast<std::size_t>(length)),
                                                              asio::redirect_error(asio::use_awaitable, error));
    BIO_nread(network_.get(), &from, static_cast<int>(sent));
    last_sent_ = std::chrono::steady_clock::now();
  }
}

asio::awaitable<void> TlsStream::fill(Socket& socket, error_code& error) {
  char* to = nullptr;
  const int room = BIO_nwrite0(network_.get(), &to);
  assert(room > 0);
  const std::size_t got = co_await socket.async_read_some(asio::buffer(to, static_cast<std::size_t>(room)),
                                                          asio::redirect_error(asio::use_awaitable, error));
  BIO_nwrite(network_.get(), &to, static_cast<int>(got));
  last_received_ = std::chrono::steady_clock::now();
}

}  // namespace lockstep::server
