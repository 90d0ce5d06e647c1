// Parameter servers whose connections are encrypted: the same sums, what is seen on the way, who is refused.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <bit>
#include <fstream>
#include <optional>

#include "comm/server/tls.h"
#include "tests/comm/server_job.h"
#include "tests/comm/tree_reference.h"
#include "tests/support/certificates.h"
#include "tests/support/temporary_folder.h"

namespace lockstep {
namespace {

using server::TlsContext;
using test::tls_options;
using testing::AllOf;
using testing::Each;
using testing::HasSubstr;
using testing::Not;
using TlsPointer = std::shared_ptr<const TlsContext>;

constexpr std::size_t kMagicBytes = 8;  // what a server says before TLS

int connect_to(std::uint16_t port) {
  const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(::connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  return socket;
}

std::string receive(int socket, std::size_t bytes) {
  std::string text(bytes, '\0');
  EXPECT_EQ(::recv(socket, text.data(), bytes, MSG_WAITALL), static_cast<ssize_t>(bytes));
  return text;
}

// Sends all of it, if it can.
void send_to(int socket, const std::string& text) {
  for (std::size_t at = 0; at < text.size();) {
    const ssize_t sent = ::send(socket, text.data() + at, text.size() - at, MSG_NOSIGNAL);
    if (sent <= 0) {
      return;
    }
    at += static_cast<std::size_t>(sent);
  }
}

// Between a worker and its server: passes on what they say, and keeps it.
class Listener {
 public:
  // Of what the worker sends, byte `damaged` is changed.
  explicit Listener(std::uint16_t server_port, std::optional<std::size_t> damaged = {})
      : door_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    EXPECT_EQ(::bind(door_, reinterpret_cast<sockaddr*>(&address), length), 0);
    EXPECT_EQ(::listen(door_, 1), 0);
    EXPECT_EQ(::getsockname(door_, reinterpret_cast<sockaddr*>(&address), &length), 0);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this, server_port, damaged] {
      const int worker = ::accept(door_, nullptr, nullptr);
      const int server = connect_to(server_port);
      std::thread down([&] { pass_on(server, worker, from_server_, {}); });
      pass_on(worker, server, from_worker_, damaged);
      down.join();
      ::close(worker);
      ::close(server);
    });
  }
  ~Listener() {
    finish();
    ::close(door_);
  }
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;
  [[nodiscard]] std::uint16_t port() const { return port_; }
  // Once both sides have ended their connections.
  void finish() {
    if (thread_.joinable()) {
      thread_.join();
    }
  }
  [[nodiscard]] const std::string& from_worker() const { return from_worker_; }
  [[nodiscard]] const std::string& from_server() const { return from_server_; }

 private:
  static void pass_on(int from, int to, std::string& seen, std::optional<std::size_t> damaged) {
    std::array<char, 65536> room;
    for (ssize_t got = 0; (got = ::recv(from, room.data(), room.size(), 0)) > 0;) {
      std::string now(room.data(), static_cast<std::size_t>(got));
      if (damaged && *damaged >= seen.size() && *damaged < seen.size() + now.size()) {
        now[*damaged - seen.size()] ^= 1;
      }
      seen += now;
      send_to(to, now);
    }
    ::shutdown(to, SHUT_WR);
  }

  int door_;
  std::uint16_t port_ = 0;
  std::string from_worker_;
  std::string from_server_;
  std::thread thread_;
};

class ServerTlsTest : public testing::Test {
 protected:
  [[nodiscard]] CertificateFiles certificate(const std::string& name, const CertificateSpec& spec = {}) const {
    return make_certificate(folder_.path(), name, spec);
  }
  [[nodiscard]] static TlsPointer shown(const CertificateFiles& files) {
    return TlsContext::of_server(files.certificate, files.key);
  }
  [[nodiscard]] static TlsPointer trusted(const CertificateFiles& files) {
    return TlsContext::of_worker(files.certificate);
  }
  // What a worker is told that cannot work with this server, as it does not take long to find.
  static std::string refusal(const TlsPointer& server, const TlsPointer& worker,
                             const std::string& host = "127.0.0.1") {
    test::ServerJob job(1, 1, tls_options(server));
    server::Session::Options options = job.options(0, 120'000);
    options.servers[0].host = host;
    options.tls = worker;
    try {
      const server::Session session(options);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUsage);
      EXPECT_THAT(error.what(),
                  AllOf(HasSubstr("(" + host + ":" + options.servers[0].port + ")"), Not(HasSubstr("\n"))));
      return error.what();
    }
    return "not refused";
  }

  const TemporaryFolder folder_;
  const CertificateFiles own_ = certificate("own");
};

TEST_F(ServerTlsTest, LeavesTheTreeSumOnEveryWorker) {
  for (const auto& [workers, servers] : {std::pair(1, 1), std::pair(3, 1), std::pair(4, 2)}) {
    test::ServerJob job(workers, servers, tls_options(shown(own_)));
    const std::vector<std::string> errors =
        test::run_workers(test::ranks_below(workers), [&, world = workers](int rank) {
          server::Session::Options options = job.options(rank);
          options.tls = trusted(own_);
          const auto comm = make_server_communicator(options, 0);
          for (const std::size_t count : {std::size_t{1}, std::size_t{4072}, std::size_t{4073}, std::size_t{600'003}}) {
            std::vector<std::vector<float>> leaves;
            for (int r = 0; r < world; ++r) {
              leaves.push_back(test::leaf_values<float>(r, count));
            }
            std::vector<float> values = leaves[static_cast<std::size_t>(rank)];
            comm->all_reduce_sum(view_of(std::span(values))).wait();
            EXPECT_TRUE(test::same_bits(values, test::reference_sum(leaves))) << count << " elements";
            std::vector<float> all(count * static_cast<std::size_t>(world));
            comm->all_gather(std::as_bytes(std::span(leaves[static_cast<std::size_t>(rank)])),
                             std::as_writable_bytes(std::span(all)));
            for (int r = 0; r < world; ++r) {
              const auto begin = all.begin() + static_cast<std::ptrdiff_t>(count) * r;
              EXPECT_TRUE(test::same_bits(std::vector<float>(begin, begin + static_cast<std::ptrdiff_t>(count)),
                                          leaves[static_cast<std::size_t>(r)]));
            }
          }
          comm->close();
        });
    EXPECT_THAT(errors, Each(""));
    EXPECT_TRUE(job.end().orderly);
  }
}

// Keys change every 64 MiB, in both directions while both are full.
TEST_F(ServerTlsTest, GoesOnWhenKeysChange) {
  test::ServerJob job(2, 1, tls_options(shown(own_)));
  const std::vector<std::string> errors = test::run_workers({0, 1}, [&](int rank) {
    server::Session::Options options = job.options(rank);
    options.tls = trusted(own_);
    const auto comm = make_server_communicator(options, 0);
    std::vector<float> values(20'000'000, static_cast<float>(rank + 1));
    for (int i = 0; i < 2; ++i) {
      std::span half = std::span(values).subspan(static_cast<std::size_t>(i) * 10'000'000, 10'000'000);
      comm->all_reduce_sum(view_of(half)).wait();
    }
    comm->all_reduce_sum(view_of(std::span(values))).wait();
    EXPECT_EQ(std::count(values.begin(), values.end(), 6.0F), 20'000'000);
    comm->close();
  });
  EXPECT_THAT(errors, Each(""));
}

TEST_F(ServerTlsTest, WhatTravelsIsSeenByOthersOnlyWithoutTls) {
  constexpr std::string_view kPattern = "PATTERN!";
  std::array<float, 2> numbers = {};
  std::memcpy(numbers.data(), kPattern.data(), kPattern.size());
  for (const bool is_encrypted : {false, true}) {
    test::ServerJob job(2, 1, is_encrypted ? tls_options(shown(own_)) : server::Server::Options{});
    Listener listener(job.server().port());
    const std::vector<std::string> errors = test::run_workers({0, 1}, [&](int rank) {
      server::Session::Options options = job.options(rank);
      options.tls = is_encrypted ? trusted(own_) : nullptr;
      if (rank == 0) {
        options.servers[0].port = std::to_string(listener.port());
      }
      const auto comm = make_server_communicator(options, 0);
      std::vector<float> values(1000);
      for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = rank == 0 ? numbers[i % 2] : 0.0F;
      }
      comm->all_reduce_sum(view_of(std::span(values))).wait();
      EXPECT_EQ(values[1], numbers[1]);
      comm->close();
    });
    EXPECT_THAT(errors, Each(""));
    listener.finish();
    EXPECT_EQ(listener.from_worker().find(kPattern) == std::string::npos, is_encrypted);
    EXPECT_EQ(listener.from_server().find(kPattern) == std::string::npos, is_encrypted);
    EXPECT_EQ(listener.from_worker().find("worker 0") == std::string::npos, is_encrypted);
  }
}

TEST_F(ServerTlsTest, WhatWasChangedOnTheWayEndsTheJob) {
  test::ServerJob job(2, 1, tls_options(shown(own_)));
  const Listener listener(job.server().port(), 1'000'000);
  const std::vector<std::string> errors = test::run_workers({0, 1}, [&](int rank) {
    server::Session::Options options = job.options(rank);
    options.tls = trusted(own_);
    if (rank == 0) {
      options.servers[0].port = std::to_string(listener.port());
    }
    const auto comm = make_server_communicator(options, 0);
    std::vector<float> values(500'000, 1.0F);
    comm->all_reduce_sum(view_of(std::span(values))).wait();
    comm->barrier();
  });
  EXPECT_THAT(errors[1], HasSubstr("rank 0 (worker 0) is gone: server: what came is not what the other side encrypted: "
                                   "decryption failed or bad record mac"));
  EXPECT_THAT(errors[0], HasSubstr("is lost: server: "));  // nothing more goes through it
}

TEST_F(ServerTlsTest, TakesServersOfAnAuthorityAndByName) {
  const CertificateFiles authority = certificate("authority");
  const CertificateFiles issued = certificate("issued", {.issuer = &authority});
  EXPECT_EQ(refusal(shown(issued), trusted(authority)), "not refused");
  const CertificateFiles named = certificate("named", {.alternatives = "DNS:localhost"});
  EXPECT_EQ(refusal(shown(named), trusted(named), "localhost"), "not refused");
}

TEST_F(ServerTlsTest, WorkersRefuseCertificatesThatProveNothing) {
  const std::string file = (folder_ / "own.pem").string();
  EXPECT_THAT(refusal(shown(certificate("other")), trusted(own_)),
              HasSubstr("comm.tls_ca " + file + " does not bear out the parameter server's certificate: self-signed"));
  const CertificateFiles authority = certificate("authority");
  EXPECT_THAT(refusal(shown(certificate("issued", {.issuer = &authority})), trusted(own_)),
              HasSubstr("certificate: unable to get local issuer certificate"));
  EXPECT_THAT(refusal(shown(own_), trusted(own_), "localhost"), HasSubstr("certificate is not for localhost"));
  const CertificateFiles far = certificate("far", {.alternatives = "IP:10.0.0.1,DNS:localhost"});
  EXPECT_THAT(refusal(shown(far), trusted(far)), HasSubstr("certificate is not for 127.0.0.1"));
  const CertificateFiles old = certificate("old", {.ends_s = -3600});
  EXPECT_THAT(refusal(shown(old), trusted(old)), HasSubstr("certificate: certificate has expired"));
  const CertificateFiles young = certificate("young", {.begins_s = 3600});
  EXPECT_THAT(refusal(shown(young), trusted(young)), HasSubstr("certificate: certificate is not yet valid"));
}

TEST_F(ServerTlsTest, BothSidesWantItOrNone) {
  EXPECT_THAT(refusal(shown(own_), nullptr),
              HasSubstr("the parameter server takes TLS only, which comm.tls_ca turns on"));
  EXPECT_THAT(refusal(nullptr, trusted(own_)),
              HasSubstr("the parameter server does not encrypt, which comm.tls_ca asks "
                        "for; start it with --tls-cert and --tls-key"));
}

TEST_F(ServerTlsTest, WorkersNeedTheTokenAsWell) {
  test::ServerJob job(1, 1, tls_options(shown(own_)));
  server::Session::Options options = job.options(0);
  options.tls = trusted(own_);
  options.token = control::JobToken::random();
  try {
    const server::Session session(options);
    FAIL() << "not refused";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("the parameter server has another token than this process"));
  }
}

TEST_F(ServerTlsTest, FilesThatMakeNoSenseAreNamed) {
  const auto problem_of = [](const std::function<TlsPointer()>& make) -> std::string {
    try {
      (void)make();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUsage);
      return error.what();
    }
    return "none";
  };
  const auto of_server = [&](const std::filesystem::path& certificate, const std::filesystem::path& key) {
    return problem_of([&] { return TlsContext::of_server(certificate, key); });
  };
  const auto of_worker = [&](const std::filesystem::path& file) {
    return problem_of([&] { return TlsContext::of_worker(file); });
  };
  const std::filesystem::path none = folder_ / "none.pem";
  const std::filesystem::path garbage = folder_ / "garbage.pem";
  std::ofstream(garbage) << "garbage\n";
  std::filesystem::permissions(garbage, std::filesystem::perms::owner_all);
  EXPECT_EQ(of_server(none, own_.key), "server: cannot read " + none.string() + ": No such file or directory");
  EXPECT_EQ(of_server(own_.certificate, none), "server: cannot read " + none.string() + ": No such file or directory");
  EXPECT_EQ(of_worker(none), "server: cannot read " + none.string() + ": No such file or directory");
  EXPECT_THAT(of_server(garbage, own_.key), HasSubstr(garbage.string() + " holds no certificate in PEM"));
  EXPECT_THAT(of_server(own_.certificate, garbage), HasSubstr(garbage.string() + " holds no private key in PEM"));
  EXPECT_THAT(of_worker(garbage), HasSubstr(garbage.string() + " holds no certificate in PEM"));
  EXPECT_THAT(of_worker(own_.key), HasSubstr(own_.key.string() + " holds no certificate in PEM"));
  const CertificateFiles other = certificate("other");
  EXPECT_EQ(
      of_server(own_.certificate, other.key),
      "server: " + other.key.string() + " is not the private key of the certificate in " + own_.certificate.string());

  const std::filesystem::path locked = folder_ / "locked.pem";
  BIO* const from = BIO_new_file(own_.key.c_str(), "r");
  EVP_PKEY* const key = PEM_read_bio_PrivateKey(from, nullptr, nullptr, nullptr);
  BIO* const to = BIO_new_file(locked.c_str(), "w");
  ASSERT_EQ(PEM_write_bio_PrivateKey(to, key, EVP_aes_128_cbc(), reinterpret_cast<const unsigned char*>("word"), 4,
                                     nullptr, nullptr),
            1);
  BIO_free(from);
  BIO_free(to);
  EVP_PKEY_free(key);
  std::filesystem::permissions(locked, std::filesystem::perms::owner_all);
  EXPECT_THAT(of_server(own_.certificate, locked), HasSubstr("holds no private key in PEM without a pass phrase"));
  std::filesystem::permissions(own_.key, std::filesystem::perms::others_read, std::filesystem::perm_options::add);
  EXPECT_THAT(of_server(own_.certificate, own_.key), HasSubstr("everybody may read or write the private key"));
}

// OpenSSL's own client, on the socket itself.
TEST_F(ServerTlsTest, SpeaksTls13AndNothingOlder) {
  test::ServerJob job(1, 1, tls_options(shown(own_)));
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    const int socket = connect_to(job.server().port());
    EXPECT_EQ(receive(socket, kMagicBytes), std::string("LSPS\0\0\1\3", kMagicBytes));
    SSL_CTX* const context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_max_proto_version(context, version);
    SSL* const tls = SSL_new(context);
    SSL_set_fd(tls, socket);
    EXPECT_EQ(SSL_connect(tls) == 1, version == TLS1_3_VERSION);
    if (version == TLS1_3_VERSION) {
      std::string greeting(kMagicBytes, '\0');
      EXPECT_EQ(SSL_read(tls, greeting.data(), static_cast<int>(greeting.size())), 8);
      EXPECT_EQ(greeting, std::string("LSPS\0\0\0\3", kMagicBytes));
    }
    SSL_free(tls);
    SSL_CTX_free(context);
    ::close(socket);
  }
}

// The first message of a TLS client.
std::string client_hello() {
  SSL_CTX* const context = SSL_CTX_new(TLS_client_method());
  SSL* const tls = SSL_new(context);
  BIO* const sent = BIO_new(BIO_s_mem());
  SSL_set_bio(tls, BIO_new(BIO_s_mem()), sent);
  EXPECT_NE(SSL_connect(tls), 1);
  std::string hello(BIO_pending(sent), '\0');
  EXPECT_EQ(BIO_read(sent, hello.data(), static_cast<int>(hello.size())), static_cast<int>(hello.size()));
  SSL_free(tls);
  SSL_CTX_free(context);
  return hello;
}

TEST_F(ServerTlsTest, StrangersDoNotDisturbASum) {
  test::ServerJob job(2, 1, tls_options(shown(own_)));
  const std::uint16_t port = job.server().port();
  const std::string hello = client_hello();
  std::atomic<bool> over = false;
  std::thread strangers([&] {
    std::vector<int> open;
    for (std::size_t i = 0; !over && i < 200; ++i) {
      const int garbage = connect_to(port);
      send_to(garbage, std::string(i * 37 % 500 + 1, static_cast<char>(i)));
      ::close(garbage);
      open.push_back(connect_to(port));  // and says nothing
      open.push_back(connect_to(port));
      send_to(open.back(), hello.substr(0, i % hello.size()));
      open.push_back(connect_to(port));
      send_to(open.back(), hello);  // and does not answer
      for (std::size_t slow = 0; slow < open.size(); slow += 50) {
        send_to(open[slow], hello.substr(i % hello.size(), 1));
      }
    }
    for (const int socket : open) {
      ::close(socket);
    }
  });
  const std::vector<std::string> errors = test::run_workers({0, 1}, [&](int rank) {
    server::Session::Options options = job.options(rank);
    options.tls = trusted(own_);
    const auto comm = make_server_communicator(options, 0);
    std::vector<float> values(300'000);
    for (int i = 0; i < 10; ++i) {
      std::fill(values.begin(), values.end(), 1.0F);
      comm->all_reduce_sum(view_of(std::span(values))).wait();
      EXPECT_THAT(values, Each(2.0F));
    }
    comm->close();
  });
  over = true;
  strangers.join();
  EXPECT_THAT(errors, Each(""));
  EXPECT_TRUE(job.end().orderly);
}

TEST_F(ServerTlsTest, AHandshakeThatIsNotFinishedIsCutOff) {
  test::ServerJob job(1, 1, tls_options(shown(own_)));
  const int socket = connect_to(job.server().port());
  EXPECT_EQ(receive(socket, kMagicBytes), std::string("LSPS\0\0\1\3", kMagicBytes));
  send_to(socket, client_hello().substr(0, 50));
  pollfd end = {socket, POLLIN, 0};
  EXPECT_EQ(::poll(&end, 1, 60'000), 1);
  char byte = 0;
  EXPECT_LE(::recv(socket, &byte, 1, 0), 0);
  ::close(socket);
}

}  // namespace
}  // namespace lockstep
