// What parameter servers and workers do about lost, silent, wrong and strange ones.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <fstream>

#include "comm/server/token_file.h"
#include "tests/comm/server_job.h"
#include "tests/comm/tree_reference.h"
#include "tests/support/child_process.h"
#include "tests/support/temporary_folder.h"

namespace lockstep {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::Each;
using testing::HasSubstr;

constexpr int kShortMs = 400;

int connect_to(std::uint16_t port) {
  const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(::connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  return socket;
}

void sum_once(Communicator& comm, std::size_t count = 1000) {
  std::vector<float> values(count, 1.0F);
  comm.all_reduce_sum(view_of(std::span(values))).wait();
  EXPECT_THAT(values, Each(static_cast<float>(comm.world_size())));
}

TEST(ServerFaultsTest, AWorkerThatLeavesIsNamedToAllOthers) {
  for (const int servers : {1, 2}) {
    test::ServerJob job(3, servers);
    const std::vector<std::string> errors = test::run_workers({0, 1, 2}, [&](int rank) {
      const auto comm = make_server_communicator(job.options(rank), 0);
      sum_once(*comm);
      if (rank != 1) {
        sum_once(*comm);
      }
    });
    EXPECT_THAT(errors[0], HasSubstr("rank 1 (worker 1) left the job before its end"));
    EXPECT_EQ(errors[1], "");
    EXPECT_EQ(errors[2], errors[0]);
    for (int server = 0; server < servers; ++server) {
      const server::Server::End end = job.end(static_cast<std::size_t>(server));
      EXPECT_FALSE(end.orderly);
      EXPECT_EQ(end.cause, errors[0]);
    }
  }
}

TEST(ServerFaultsTest, AKilledWorkerIsNamedToAllOthers) {
  // The child is forked before this process has threads, so it has to know the port before there is a server.
  const int probe = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  ASSERT_EQ(::bind(probe, reinterpret_cast<sockaddr*>(&address), length), 0);
  ASSERT_EQ(::getsockname(probe, reinterpret_cast<sockaddr*>(&address), &length), 0);
  ::close(probe);
  server::Server::Options options;
  options.workers = 2;
  options.port = ntohs(address.sin_port);
  server::Session::Options worker;
  worker.servers = {{"127.0.0.1", std::to_string(options.port)}};
  worker.token = options.token;
  worker.timeout_ms = 20'000;
  worker.rank = 1;
  worker.name = "to be killed";
  const pid_t child = start_child([&] {
    const auto comm = make_server_communicator(worker, 0);
    sum_once(*comm);
    std::vector<float> values(3'000'000);
    const Work work = comm->all_reduce_sum(view_of(std::span(values)));
    ::raise(SIGKILL);
    return 0;
  });
  server::Server server(options);
  worker.rank = 0;
  worker.process = 0;
  worker.name = "the other";
  const auto comm = make_server_communicator(worker, 0);
  sum_once(*comm);
  std::string error;
  try {
    sum_once(*comm, 3'000'000);
    comm->barrier();
  } catch (const Error& lost) {
    EXPECT_EQ(lost.code(), ErrorCode::kPeerLost);
    error = lost.what();
  }
  EXPECT_THAT(error, HasSubstr("rank 1 (to be killed) is gone"));
  EXPECT_THROW(comm->check_peers(), Error);
  EXPECT_THROW(comm->barrier(), Error);
  EXPECT_EQ(wait_for_child(child), -SIGKILL);
}

TEST(ServerFaultsTest, ASilentWorkerIsNamedToAllOthers) {
  for (const int servers : {1, 2}) {
    test::ServerJob job(3, servers);
    const std::vector<std::string> errors = test::run_workers({0, 1, 2}, [&](int rank) {
      const auto comm = make_server_communicator(job.options(rank, kShortMs), 0);
      sum_once(*comm);
      if (rank == 2) {
        std::this_thread::sleep_for(std::chrono::milliseconds(3 * kShortMs));
      }
      sum_once(*comm);
    });
    EXPECT_THAT(errors, Each(AllOf(HasSubstr("all_reduce_sum of 1000 f32: rank 2 (worker 2) kept the others waiting"),
                                   HasSubstr(" s"))));
  }
}

TEST(ServerFaultsTest, AWorkerThatKeepsOthersWaitingForItsBytesIsNamed) {
  test::ServerJob job(3, 2);
  const std::vector<std::string> errors = test::run_workers({0, 1, 2}, [&](int rank) {
    const auto comm = make_server_communicator(job.options(rank, kShortMs), 0);
    if (rank == 1) {
      std::this_thread::sleep_for(std::chrono::milliseconds(3 * kShortMs));
    }
    std::vector<std::byte> bytes(100'000);
    comm->broadcast(bytes, 1);
  });
  EXPECT_THAT(errors[0], HasSubstr("broadcast of 100000 bytes: rank 1 (worker 1) kept the others waiting"));
  EXPECT_EQ(errors[2], errors[0]);
}

// More than a server takes in of one worker, whose own question would not be read.
TEST(ServerFaultsTest, ASilentWorkerIsNamedToOneThatIsHeldBack) {
  for (const bool is_sum : {true, false}) {
    test::ServerJob job(2);
    const std::vector<std::string> errors = test::run_workers({0, 1}, [&](int rank) {
      const auto comm = make_server_communicator(job.options(rank, kShortMs), 0);
      if (rank == 1) {
        std::this_thread::sleep_for(std::chrono::milliseconds(5 * kShortMs));
        comm->check_peers();
      }
      std::vector<float> values(40'000'000);
      if (is_sum) {
        comm->all_reduce_sum(view_of(std::span(values))).wait();
      } else {
        comm->broadcast(std::as_writable_bytes(std::span(values)), 0);
      }
    });
    EXPECT_THAT(errors, Each(HasSubstr("rank 1 (worker 1) kept the others waiting for 0.4 s")));
  }
}

TEST(ServerFaultsTest, AWorkerThatDoesNotComeIsNamed) {
  test::ServerJob job(2);
  const std::vector<std::string> errors =
      test::run_workers({0}, [&](int rank) { (void)make_server_communicator(job.options(rank, kShortMs), 0); });
  EXPECT_THAT(errors[0], HasSubstr("start: rank 1, which has not come, kept the others waiting"));
}

TEST(ServerFaultsTest, ALostServerIsNamedToAllWorkers) {
  test::ServerJob job(2, 2);
  std::atomic<int> ready = 0;
  const std::vector<std::string> errors = test::run_workers({0, 1}, [&](int rank) {
    const auto comm = make_server_communicator(job.options(rank), 0);
    const std::string port = job.options(0).servers[1].port;
    sum_once(*comm);
    if (++ready == 2) {
      job.stop_server(1);
    }
    while (true) {
      try {
        sum_once(*comm);
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::kPeerLost);
        EXPECT_THAT(error.what(), HasSubstr("the parameter server 127.0.0.1:" + port + " is lost"));
        throw;
      }
    }
  });
  EXPECT_THAT(errors, Each(HasSubstr("is lost")));
}

TEST(ServerFaultsTest, RanksThatSumDifferentThingsAreTold) {
  test::ServerJob job(2);
  const std::vector<std::string> errors = test::run_workers({0, 1}, [&](int rank) {
    const auto comm = make_server_communicator(job.options(rank), 0);
    sum_once(*comm, rank == 0 ? 1000 : 2000);
  });
  EXPECT_THAT(errors, Each(AllOf(HasSubstr("1000 f32"), HasSubstr("2000 f32"), HasSubstr("the same calls"))));
}

TEST(ServerFaultsTest, WorkersThatDoNotBelongAreRefused) {
  test::ServerJob job(2);
  const auto refusal = [&](const std::function<void(server::Session::Options&)>& change) -> std::string {
    server::Session::Options options = job.options(0, 2'000);
    change(options);
    try {
      const server::Session session(options);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUsage);
      return error.what();
    }
    return "not refused";
  };
  EXPECT_THAT(refusal([](auto& options) { options.token = control::JobToken::random(); }),
              HasSubstr("the parameter server has another token than this process"));
  EXPECT_THAT(refusal([](auto& options) { options.world = 3; }), HasSubstr("one of 3, but the server waits for 2"));
  EXPECT_THAT(refusal([](auto& options) { options.rank = 2; }), HasSubstr("rank 2, expected one below 2"));
  EXPECT_THAT(refusal([](auto& options) { options.servers.push_back(options.servers[0]); }),
              HasSubstr("takes this server for part 1/2, but it was started with --part 1/1"));
  // Two of the same rank: whichever comes second.
  std::atomic<int> processes = 0;
  std::atomic<bool> is_refused = false;
  const std::vector<std::string> errors = test::run_workers({0, 1, 0}, [&](int rank) {
    server::Session::Options options = job.options(rank);
    options.process = server::own_process() + static_cast<std::uint64_t>(++processes);
    std::optional<server::Session> session;
    try {
      session.emplace(options);
    } catch (const Error&) {
      is_refused = true;
      throw;
    }
    for (float seen = 0; seen == 0;) {
      seen = is_refused ? 1 : 0;
      session->sum("sum", view_of(std::span(&seen, 1)), {0, 1}).wait();
    }
    session->close();
  });
  EXPECT_EQ(std::count(errors.begin(), errors.end(), ""), 2);
  EXPECT_THAT(errors, Contains(HasSubstr("rank 0 (worker 0) is here already, and worker 0 has the same rank")));
}

// Somebody between a worker and its server, who passes on what the worker sends after `change` has been at it, once.
class Meddler {
 public:
  using Change = std::function<void(std::string& sent)>;
  // `change` gets everything that was sent so far, once that is `bytes` long.
  Meddler(std::uint16_t server_port, std::size_t bytes, Change change) : listener_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    EXPECT_EQ(::bind(listener_, reinterpret_cast<sockaddr*>(&address), length), 0);
    EXPECT_EQ(::listen(listener_, 1), 0);
    EXPECT_EQ(::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &length), 0);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this, server_port, bytes, change] {
      const int worker = ::accept(listener_, nullptr, nullptr);
      const int server = connect_to(server_port);
      pass_on(worker, server, bytes, change);
      ::close(worker);
      ::close(server);
    });
  }
  ~Meddler() {
    thread_.join();
    ::close(listener_);
  }
  Meddler(const Meddler&) = delete;
  Meddler& operator=(const Meddler&) = delete;
  [[nodiscard]] std::uint16_t port() const { return port_; }

 private:
  static void pass_on(int worker, int server, std::size_t bytes, const Change& change) {
    std::string sent;
    bool is_changed = false;
    std::array<pollfd, 2> ends = {pollfd{worker, POLLIN, 0}, pollfd{server, POLLIN, 0}};
    while (::poll(ends.data(), ends.size(), 10'000) > 0) {
      for (std::size_t i = 0; i < ends.size(); ++i) {
        std::array<char, 4096> room;
        const ssize_t got = ends[i].revents != 0 ? ::recv(ends[i].fd, room.data(), room.size(), 0) : -1;
        if (got == 0 || (got < 0 && ends[i].revents != 0)) {
          return;
        }
        std::string now(room.data(), static_cast<std::size_t>(std::max<ssize_t>(got, 0)));
        if (i == 0) {
          const std::size_t before = sent.size();
          sent += now;
          if (!is_changed && sent.size() >= bytes) {
            is_changed = true;
            change(sent);
          }
          now = sent.substr(before);
        }
        (void)::send(ends[1 - i].fd, now.data(), now.size(), MSG_NOSIGNAL);
      }
    }
  }

  int listener_;
  std::uint16_t port_ = 0;
  std::thread thread_;
};

// The worker's part of the handshake, its hello, and its first push: one number.
constexpr std::size_t kFirstPush = 64 + (96 + 45 + 8);
constexpr std::size_t kPushBytes = 96 + 4;

TEST(ServerFaultsTest, WhatWasChangedOrRepeatedOnTheWayEndsTheJob) {
  const std::vector<std::pair<Meddler::Change, std::string>> cases = {
      {[](std::string& sent) { sent[kFirstPush + 20] ^= 1; }, "frame 1 was not made by the other side"},
      {[](std::string& sent) { sent[kFirstPush + 90] ^= 1; }, "frame 1 was not made by the other side"},
      {[](std::string& sent) { sent[kFirstPush + 97] ^= 1; }, "the payload of frame 1 is damaged"},
      {[](std::string& sent) { sent += sent.substr(kFirstPush, kPushBytes); },
       "frame 1 came where frame 2 was expected"},
  };
  for (const auto& [change, why] : cases) {
    test::ServerJob job(2);
    // Changes come while the bytes that they change are still here: the push is sent in one piece.
    const Meddler meddler(job.server().port(), kFirstPush + kPushBytes, change);
    const std::vector<std::string> errors = test::run_workers({0, 1}, [&](int rank) {
      server::Session::Options options = job.options(rank);
      if (rank == 0) {
        options.servers[0].port = std::to_string(meddler.port());
      }
      const auto comm = make_server_communicator(options, 1);
      for (int i = 0; i < 1000; ++i) {
        sum_once(*comm);
      }
    });
    EXPECT_THAT(errors, Each(HasSubstr("rank 0 (worker 0) is gone: server: " + why)));
  }
}

TEST(ServerFaultsTest, StrangersDoNotDisturbASum) {
  test::ServerJob job(2);
  const std::uint16_t port = job.server().port();
  std::atomic<bool> over = false;
  std::thread strangers([&] {
    std::vector<int> half_open;
    for (int i = 0; !over && i < 200; ++i) {
      const int garbage = connect_to(port);
      const std::string noise(static_cast<std::size_t>(i * 37 % 500 + 1), static_cast<char>(i));
      (void)::send(garbage, noise.data(), noise.size(), MSG_NOSIGNAL);
      ::close(garbage);
      half_open.push_back(connect_to(port));  // and says nothing
    }
    for (const int socket : half_open) {
      ::close(socket);
    }
  });
  const std::vector<std::string> errors = test::run_workers({0, 1}, [&](int rank) {
    const auto comm = make_server_communicator(job.options(rank), 0);
    for (int i = 0; i < 10; ++i) {
      sum_once(*comm, 300'000);
    }
    server::Session::Options wrong = job.options(1, 1'000);
    wrong.token = control::JobToken::random();
    EXPECT_THROW(server::Session{wrong}, Error);
    sum_once(*comm);
    comm->close();
  });
  over = true;
  strangers.join();
  EXPECT_THAT(errors, Each(""));
  EXPECT_TRUE(job.end().orderly);
}

TEST(ServerTokenFileTest, IsMadeOnceForItsOwnerAlone) {
  const TemporaryFolder folder;
  const std::filesystem::path path = folder.path() / "new" / "token";
  EXPECT_THROW((void)server::read_token(path), Error);
  const std::string token = server::read_or_create_token(path).hex();
  EXPECT_EQ(server::read_or_create_token(path).hex(), token);
  EXPECT_EQ(server::read_token(path).hex(), token);
  EXPECT_EQ(std::filesystem::status(path).permissions(),
            std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
  std::filesystem::permissions(path, std::filesystem::perms::group_read, std::filesystem::perm_options::add);
  EXPECT_THROW((void)server::read_token(path), Error);
  std::filesystem::permissions(path, std::filesystem::perms::group_read, std::filesystem::perm_options::remove);
  std::ofstream(path) << "short\n";
  EXPECT_THROW((void)server::read_token(path), Error);
}

TEST(ServerTokenFileTest, IsWhereTheEnvironmentSays) {
  const auto in = [](std::vector<std::pair<std::string, std::string>> variables) {
    return server::token_file([=](const std::string& name) -> std::optional<std::string> {
      for (const auto& [key, value] : variables) {
        if (key == name) {
          return value;
        }
      }
      return {};
    });
  };
  EXPECT_EQ(in({{"LOCKSTEP_TOKEN_FILE", "/a/b"}, {"HOME", "/root"}}), "/a/b");
  EXPECT_EQ(in({{"HOME", "/root"}}), "/root/.lockstep/token");
  EXPECT_THROW(in({}), Error);
}

}  // namespace
}  // namespace lockstep
