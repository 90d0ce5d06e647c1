// A coordinator and its workers over real sockets on the loopback address.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "base/process.h"
#include "comm/control/client.h"
#include "comm/control/coordinator.h"

namespace lockstep::control {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr int kSilenceMs = 1'000;

// Collects what callbacks say, and waits for it.
class Heard {
 public:
  void add(const std::string& text) {
    const std::lock_guard lock(mutex_);
    texts_.push_back(text);
    changed_.notify_all();
  }
  // The texts, once there are `count` of them or after ten seconds.
  std::vector<std::string> wait_for(std::size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::seconds(10), [&] { return texts_.size() >= count; });
    return texts_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> texts_;
};

class ControlTest : public testing::Test {
 protected:
  ControlTest() {
    Coordinator::Options options;
    options.token = token_;
    options.silence_ms = kSilenceMs;
    options.on_trouble = [this](const std::vector<Trouble>& found) {
      for (const Trouble& trouble : found) {
        troubles_.add(trouble.text);
      }
    };
    coordinator_ = std::make_unique<Coordinator>(std::move(options));
    coordinator_->begin_attempt(1, 2);
  }
  [[nodiscard]] CoordinatorAddress address() const { return {{"127.0.0.1"}, coordinator_->port(), token_}; }

  std::unique_ptr<Client> worker(int rank, Activity& activity, int attempt = 1) {
    return worker(rank, activity, attempt, address());
  }
  std::unique_ptr<Client> worker(int rank, Activity& activity, int attempt, const CoordinatorAddress& coordinator) {
    Client::Options options;
    options.coordinator = coordinator;
    // Of a process that is not on this host: its end shows only in its connection's.
    options.hello = {.rank = rank, .world = 2, .attempt = attempt, .host = "elsewhere", .process = 1000 + rank};
    options.silence_ms = kSilenceMs;
    options.on_request = [this](Order order) { requests_.add(order == Order::kStop ? "stop" : "save"); };
    options.on_end = [this](const std::string& reason) { ends_.add(reason); };
    options.on_coordinator_gone = [this](const std::string&) { gone_.add("gone"); };
    return std::make_unique<Client>(std::move(options), activity);
  }
  // Until both have come up.
  void wait_for_workers() {
    for (int i = 0; i < 1000 && coordinator_->state().workers.size() < 2; ++i) {
      std::this_thread::sleep_for(milliseconds(5));
    }
    ASSERT_EQ(coordinator_->state().workers.size(), 2U);
  }

  const JobToken token_ = JobToken::random();
  std::array<Activity, 2> activity_;
  Heard troubles_, requests_, ends_, gone_;
  std::unique_ptr<Coordinator> coordinator_;
};

// A connection that says whatever it likes.
class RawConnection {
 public:
  explicit RawConnection(std::uint16_t port) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  }
  ~RawConnection() { ::close(socket_); }
  RawConnection(const RawConnection&) = delete;
  RawConnection& operator=(const RawConnection&) = delete;

  void send(const std::string& bytes) const { (void)::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL); }
  // Everything that comes until the other side closes; false when it has not within ten seconds.
  [[nodiscard]] bool is_closed_by_the_other_side() const {
    std::array<char, 4096> bytes;
    pollfd event = {socket_, POLLIN, 0};
    while (::poll(&event, 1, 10'000) == 1) {
      if (::recv(socket_, bytes.data(), bytes.size(), 0) <= 0) {
        return true;
      }
    }
    return false;
  }

 private:
  int socket_;
};

TEST_F(ControlTest, ShowsWhatEveryWorkerDoes) {
  activity_[0].enter(Phase::kReduce, 7, 3);
  activity_[1].begin_run(5, 100);
  activity_[1].end_step(6, 2.5, 1000);
  activity_[1].enter(Phase::kUpdate, 7);
  const auto first = worker(0, activity_[0]);
  const auto second = worker(1, activity_[1]);
  wait_for_workers();
  std::this_thread::sleep_for(milliseconds(kSilenceMs / 5));

  const JobState job = ask(address(), Question::kState, 1'000);
  ASSERT_EQ(job.workers.size(), 2U);
  EXPECT_EQ(job.world, 2);
  EXPECT_TRUE(job.workers[0].connected);
  EXPECT_EQ(job.workers[0].last.activity.phase, Phase::kReduce);
  EXPECT_EQ(job.workers[0].last.activity.part, 3);
  EXPECT_EQ(job.workers[1].last.activity.completed_step, 6);
  EXPECT_EQ(job.workers[1].last.activity.loss, 2.5);
  EXPECT_EQ(job.workers[1].process, 1001);
  first->farewell({});
  second->farewell({});
  coordinator_->wait_for_farewells(10'000);
  EXPECT_TRUE(coordinator_->state().workers[0].ended);
}

TEST_F(ControlTest, PassesRequestsOnAlsoToThoseWhoComeLater) {
  const auto first = worker(0, activity_[0]);
  for (int i = 0; i < 1000 && coordinator_->state().workers.empty(); ++i) {
    std::this_thread::sleep_for(milliseconds(5));
  }
  coordinator_->request_save();
  EXPECT_THAT(requests_.wait_for(1), testing::ElementsAre("save"));
  (void)ask(address(), Question::kStop, 1'000);
  EXPECT_THAT(requests_.wait_for(2), testing::ElementsAre("save", "stop"));
  const auto second = worker(1, activity_[1]);
  EXPECT_THAT(requests_.wait_for(3), testing::ElementsAre("save", "stop", "stop"));
  first->farewell({});
  second->farewell({});
}

TEST_F(ControlTest, NamesAWorkerThatDiedAndEndsTheOthers) {
  const auto first = worker(0, activity_[0]);
  auto second = worker(1, activity_[1]);
  wait_for_workers();
  activity_[1].enter(Phase::kUpdate, 12);
  std::this_thread::sleep_for(milliseconds(kSilenceMs / 5));
  second.reset();
  const std::string expected = "rank 1 (host elsewhere, process 1001) is gone; last seen in step 12: optimizer";
  EXPECT_THAT(troubles_.wait_for(1), testing::ElementsAre(expected));
  EXPECT_THAT(ends_.wait_for(1), testing::ElementsAre(expected));
}

TEST_F(ControlTest, AWorkerThatHearsNothingEnds) {
  const JobToken other_token = token_;
  // A coordinator that does not answer: it accepts connections, and its handshake is never finished.
  const int listener = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  ASSERT_EQ(::bind(listener, reinterpret_cast<const sockaddr*>(&address), size), 0);
  ASSERT_EQ(::listen(listener, 16), 0);
  ASSERT_EQ(::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size), 0);
  Client::Options options;
  options.coordinator = {{"127.0.0.1"}, ntohs(address.sin_port), other_token};
  options.hello = {.rank = 0, .world = 2, .attempt = 1, .host = "elsewhere", .process = 1000};
  options.silence_ms = kSilenceMs;
  options.on_end = [this](const std::string& reason) { ends_.add(reason); };
  const Client client(std::move(options), activity_[0]);
  EXPECT_THAT(ends_.wait_for(1), testing::ElementsAre(HasSubstr("no coordinator answers at 127.0.0.1 port")));
  ::close(listener);
}

TEST_F(ControlTest, AWorkerNoticesThatTheCoordinatorIsNoMore) {
  const auto first = worker(0, activity_[0]);
  const auto second = worker(1, activity_[1]);
  wait_for_workers();
  coordinator_.reset();
  EXPECT_EQ(gone_.wait_for(2).size(), 2U);
  EXPECT_THAT(ends_.wait_for(0), IsEmpty());
}

// The others are those of networks that this host is not in: one that leads nowhere, one that refuses.
TEST_F(ControlTest, OneOfTheCoordinatorsAddressesIsEnough) {
  const CoordinatorAddress all{{"192.0.2.1", "127.0.0.2", "127.0.0.1"}, coordinator_->port(), token_};
  const auto first = worker(0, activity_[0], 1, all);
  const auto second = worker(1, activity_[1], 1, all);
  wait_for_workers();
  EXPECT_EQ(ask(all, Question::kState, 1'000).workers.size(), 2U);
  coordinator_.reset();
  EXPECT_EQ(gone_.wait_for(2).size(), 2U);
  EXPECT_THAT(ends_.wait_for(0), IsEmpty());
}

TEST_F(ControlTest, TurnsAwayAWorkerOfAnEarlierAttempt) {
  coordinator_->begin_attempt(2, 2);
  const auto late = worker(0, activity_[0], 1);
  EXPECT_THAT(ends_.wait_for(1), testing::ElementsAre(HasSubstr("rank 0 of attempt 1 is not expected here")));
}

TEST_F(ControlTest, AWrongTokenGetsNothing) {
  const CoordinatorAddress wrong = {{"127.0.0.1"}, coordinator_->port(), JobToken::random()};
  try {
    static_cast<void>(ask(wrong, Question::kState, 2'000));
    FAIL() << "not refused";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr(" has another token than this process"));
  }
  for (int i = 0; i < 1'000 && coordinator_->state().refused_connections == 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // it is told before it is counted
  }
  EXPECT_EQ(coordinator_->state().refused_connections, 1U);
}

// Garbage, half frames, silence and a flood beside a job: it does not notice.
TEST_F(ControlTest, SurvivesStrangers) {
  const auto first = worker(0, activity_[0]);
  const auto second = worker(1, activity_[1]);
  wait_for_workers();
  const std::uint16_t port = coordinator_->port();
  for (const std::string& bytes : {std::string(64, '\0'), std::string(1'000, 'A'),
                                   std::string("GET / HTTP/1.1\r\n\r\n"), std::string(100'000, '\xff')}) {
    const RawConnection stranger(port);
    stranger.send(bytes);
    if (bytes.size() >= 64) {
      EXPECT_TRUE(stranger.is_closed_by_the_other_side());
    }
  }
  std::vector<std::unique_ptr<RawConnection>> silent;  // more than may be in the handshake at once
  for (int i = 0; i < 200; ++i) {
    silent.push_back(std::make_unique<RawConnection>(port));
    silent.back()->send("half");
  }
  EXPECT_TRUE(silent.front()->is_closed_by_the_other_side());
  for (int i = 0; i < 2'000; ++i) {
    const RawConnection flood(port);
    flood.send("x");
  }
  EXPECT_EQ(ask(address(), Question::kState, 5'000).workers.size(), 2U);
  std::this_thread::sleep_for(milliseconds(2 * kSilenceMs));
  EXPECT_THAT(troubles_.wait_for(0), IsEmpty());
  EXPECT_THAT(ends_.wait_for(0), IsEmpty());
  EXPECT_GE(coordinator_->state().refused_connections, 100U);
  first->farewell({});
  second->farewell({});
}

}  // namespace
}  // namespace lockstep::control
