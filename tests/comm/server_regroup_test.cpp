// Workers and servers that are lost while others go on: the next group.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <optional>

#include "comm/server/lateness.h"
#include "comm/server/seating.h"
#include "tests/comm/server_job.h"

namespace lockstep {
namespace {

using std::chrono::milliseconds;
using testing::AllOf;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

server::Server::Options waiting(milliseconds wait, int min_workers = 0) {
  server::Server::Options options;
  options.wait = wait;
  options.min_workers = min_workers;
  return options;
}

// A worker as the training loop is one: what it has is the number of sums that it has seen, and everybody does as many.
// After a loss it comes again, with what it has; who has less takes over the most that anybody has.
class Counter {
 public:
  explicit Counter(server::Session::Options options) : options_(std::move(options)) {}

  // Sums until `target` are done; calls `before` (count, world) in front of each. `attempts` groups at most.
  void run(int target, const std::function<void(int count, int world)>& before = {}, int attempts = 20) {
    for (int attempt = 0; attempt < attempts; ++attempt) {
      const auto comm = make_server_communicator(options_, 1);
      options_.rank = comm->rank();
      ++groups_;
      try {
        take_over(*comm);
        while (count_ < target) {
          if (before) {
            before(count_, comm->world_size());
          }
          std::vector<double> value(3'000, static_cast<double>(comm->rank() + count_));
          comm->all_reduce_sum(view_of(std::span(value))).wait();
          const int world = comm->world_size();
          EXPECT_THAT(value, Each(world * (world - 1) / 2 + world * count_));
          ++count_;
        }
        comm->close();
        return;
      } catch (const Error&) {
        if (!comm->may_rejoin()) {
          throw;
        }
      }
    }
    throw Error(ErrorCode::kTimeout, "too many groups");
  }
  [[nodiscard]] int groups() const { return groups_; }

 private:
  void take_over(Communicator& comm) {
    std::vector<int> counts(static_cast<std::size_t>(comm.world_size()));
    comm.all_gather(std::as_bytes(std::span(&count_, 1)), std::as_writable_bytes(std::span(counts)));
    count_ = *std::max_element(counts.begin(), counts.end());
  }

  server::Session::Options options_;
  int count_ = 0;
  int groups_ = 0;
};

// A link that can be cut: everything that goes through it then ends, and nothing new is let through.
class Link {
 public:
  explicit Link(std::uint16_t to) : to_(to), listener_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    EXPECT_EQ(::bind(listener_, reinterpret_cast<sockaddr*>(&address), length), 0);
    EXPECT_EQ(::listen(listener_, 8), 0);
    EXPECT_EQ(::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &length), 0);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { pass_on(); });
  }
  ~Link() {
    over_ = true;
    thread_.join();
    ::close(listener_);
  }
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  [[nodiscard]] std::string port() const { return std::to_string(port_); }
  // Cut, or nothing gets through any more although the ends are not told.
  enum class State { kOpen, kCut, kMute };
  void set(State state) { state_ = state; }

 private:
  struct Pair {
    std::array<int, 2> ends;
  };
  void close_all() {
    for (const Pair& pair : pairs_) {
      ::close(pair.ends[0]);
      ::close(pair.ends[1]);
    }
    pairs_.clear();
  }
  void pass_on() {
    while (!over_) {
      const State state = state_;
      if (state == State::kCut) {
        close_all();
      }
      std::vector<pollfd> events = {{listener_, POLLIN, 0}};
      for (const Pair& pair : pairs_) {
        for (const int end : pair.ends) {
          events.push_back({end, static_cast<short>(state == State::kMute ? 0 : POLLIN), 0});
        }
      }
      if (::poll(events.data(), events.size(), 5) <= 0) {
        continue;
      }
      std::vector<Pair> left;
      for (std::size_t i = 0; i < pairs_.size(); ++i) {
        const bool open = state == State::kMute ||
                          (move(events[1 + 2 * i], pairs_[i].ends[1]) && move(events[2 + 2 * i], pairs_[i].ends[0]));
        if (open) {
          left.push_back(pairs_[i]);
        } else {
          ::close(pairs_[i].ends[0]);
          ::close(pairs_[i].ends[1]);
        }
      }
      pairs_ = left;
      if (events[0].revents != 0) {
        const int worker = ::accept(listener_, nullptr, nullptr);
        if (state == State::kOpen) {
          const int server = ::socket(AF_INET, SOCK_STREAM, 0);
          sockaddr_in address = {};
          address.sin_family = AF_INET;
          address.sin_port = htons(to_);
          address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
          (void)::connect(server, reinterpret_cast<const sockaddr*>(&address), sizeof(address));
          pairs_.push_back({{worker, server}});
        } else {
          ::close(worker);
        }
      }
    }
    close_all();
  }
  static bool move(const pollfd& from, int to) {
    if (from.revents == 0) {
      return true;
    }
    std::array<char, 65536> room;
    const ssize_t got = ::recv(from.fd, room.data(), room.size(), 0);
    for (ssize_t done = 0; done < got;) {
      const ssize_t sent = ::send(to, room.data() + done, static_cast<std::size_t>(got - done), MSG_NOSIGNAL);
      if (sent <= 0) {
        return false;
      }
      done += sent;
    }
    return got > 0;
  }

  std::uint16_t to_;
  int listener_;
  std::uint16_t port_ = 0;
  std::vector<Pair> pairs_;
  std::atomic<State> state_{State::kOpen};
  std::atomic<bool> over_{false};
  std::thread thread_;
};

TEST(ServerRegroupTest, AWorkerThatLeftIsReplacedAndTheOthersGoOn) {
  for (const int servers : {1, 2, 3}) {
    test::ServerJob job(3, servers, waiting(milliseconds(20'000)));
    std::atomic<int> groups = 0;
    const std::vector<std::string> errors = test::run_workers({0, 1, 2}, [&](int rank) {
      if (rank == 1) {
        try {
          Counter(job.options(1)).run(100, [](int count, int) {
            if (count == 40) {
              throw std::runtime_error("killed");  // leaves without a close()
            }
          });
        } catch (const std::runtime_error&) {
        }
        auto another = job.options(1);
        another.process = 77;
        Counter(another).run(100);
        return;
      }
      Counter counter(job.options(rank));
      counter.run(100);
      groups += counter.groups();
    });
    EXPECT_THAT(errors, Each(""));
    EXPECT_EQ(groups, 4);  // two of both
    for (int server = 0; server < servers; ++server) {
      EXPECT_TRUE(job.end(static_cast<std::size_t>(server)).orderly);
    }
    EXPECT_THAT(job.said(), HasSubstr("rank 1 (worker 1) left the job before its end"));
  }
}

TEST(ServerRegroupTest, AServerThatCameBackIsUsedAgain) {
  for (const std::size_t lost : {0, 1}) {
    test::ServerJob job(2, 2, waiting(milliseconds(20'000)));
    std::atomic<bool> restarted = false;
    const std::vector<std::string> errors = test::run_workers({0, 1}, [&](int rank) {
      Counter(job.options(rank)).run(100, [&](int count, int) {
        if (count == 50 && rank == 0 && !restarted.exchange(true)) {
          job.stop_server(lost);
          std::this_thread::sleep_for(milliseconds(50));
          job.start_server(lost);
        }
      });
    });
    EXPECT_THAT(errors, Each("")) << job.said();
    EXPECT_TRUE(job.end(0).orderly);
    EXPECT_TRUE(job.end(1).orderly);
  }
}

TEST(ServerRegroupTest, ALinkMayBeCutAgainAndAgain) {
  test::ServerJob job(2, 2, waiting(milliseconds(20'000)));
  Link link(job.server(1).port());
  const std::vector<std::string> errors = test::run_workers({0, 1}, [&](int rank) {
    auto options = job.options(rank);
    options.servers[1].port = rank == 1 ? link.port() : options.servers[1].port;
    int cuts = 0;
    Counter(options).run(200, [&](int count, int) {
      if (rank == 1 && count >= 40 * (cuts + 1) && cuts < 3) {
        ++cuts;
        link.set(Link::State::kCut);
        std::this_thread::sleep_for(milliseconds(30));
        link.set(Link::State::kOpen);
      }
    });
  });
  EXPECT_THAT(errors, Each("")) << job.said();
}

// The other side is not told that the link is gone. Nor is the worker.
TEST(ServerRegroupTest, SilenceEndsAGroupAndIsNamed) {
  test::ServerJob job(2, 1, waiting(milliseconds(20'000)));
  Link link(job.server().port());
  const std::vector<std::string> errors = test::run_workers({0, 1}, [&](int rank) {
    auto options = job.options(rank);
    options.silence_ms = 500;
    options.servers[0].port = rank == 1 ? link.port() : options.servers[0].port;
    bool is_cut = false;
    Counter(options).run(100, [&](int count, int) {
      if (rank == 1 && count == 50 && !std::exchange(is_cut, true)) {
        link.set(Link::State::kMute);
        std::this_thread::sleep_for(milliseconds(1'500));
        link.set(Link::State::kCut);
        std::this_thread::sleep_for(milliseconds(30));
        link.set(Link::State::kOpen);
      }
    });
  });
  EXPECT_THAT(errors, Each("")) << job.said();
  EXPECT_THAT(job.said(), HasSubstr("rank 1 (worker 1) has not answered for 0."));
}

TEST(ServerRegroupTest, AReplacementMayComeBeforeTheLossIsNoticed) {
  test::ServerJob job(2, 1, waiting(milliseconds(20'000)));
  Link link(job.server().port());
  std::atomic<bool> is_mute = false;
  std::atomic<bool> is_replaced = false;
  const std::vector<std::string> errors = test::run_workers({0, 1, 2}, [&](int worker) {
    auto options = job.options(worker == 2 ? 1 : worker);
    options.silence_ms = 800;
    options.process = static_cast<std::uint64_t>(worker);
    if (worker == 1) {
      options.servers[0].port = link.port();
      try {
        Counter(options).run(100, [&](int count, int) {
          if (count == 50) {
            link.set(Link::State::kMute);
            is_mute = true;
            while (!is_replaced) {
              std::this_thread::sleep_for(milliseconds(10));
            }
            throw std::runtime_error("gone for good");
          }
        });
      } catch (const std::runtime_error&) {
      }
      return;
    }
    while (worker == 2 && !is_mute) {
      std::this_thread::sleep_for(milliseconds(5));
    }
    Counter(options).run(100, [&](int, int) { is_replaced = worker == 2 || is_replaced; });
  });
  EXPECT_THAT(errors, Each("")) << job.said();
}

TEST(ServerRegroupTest, WhoCameAndLeftBeforeTheStartIsNotWaitedFor) {
  test::ServerJob job(2, 1, waiting(milliseconds(3'000), 1));
  Link link(job.server().port());
  auto early = job.options(-1);
  early.process = 9;
  early.timeout_ms = 2'000;
  early.servers[0].port = link.port();
  std::jthread cutter([&] {
    while (job.said().find("has come, 1 of 2 are missing") == std::string::npos) {
      std::this_thread::sleep_for(milliseconds(5));
    }
    link.set(Link::State::kCut);
  });
  EXPECT_THROW(server::Session{early}, Error);
  std::this_thread::sleep_for(milliseconds(2'000));
  std::atomic<int> smallest = 2;
  const std::vector<std::string> errors = test::run_workers({0, 1}, [&](int worker) {
    std::this_thread::sleep_for(milliseconds(worker == 1 ? 500 : 0));
    auto options = job.options(-1);
    options.process = static_cast<std::uint64_t>(worker);
    Counter(options).run(20, [&](int, int world) { smallest = std::min<int>(smallest, world); });
  });
  EXPECT_THAT(errors, Each("")) << job.said();
  EXPECT_EQ(smallest, 2) << job.said();
}

TEST(ServerRegroupTest, FewerGoOnAndMoreAreTakenIn) {
  test::ServerJob job(4, 2, waiting(milliseconds(300), 1));
  std::atomic<int> smallest = 4;
  std::atomic<bool> has_grown = false;
  const std::vector<std::string> errors = test::run_workers({0, 1, 2, 3}, [&](int worker) {
    auto options = job.options(-1);
    options.process = static_cast<std::uint64_t>(worker);
    const auto watch = [&](int count, int world) {
      smallest = std::min<int>(smallest, world);
      if (smallest == 2 && world == 4) {
        has_grown = true;
      }
      while (count == 90 && !has_grown && world == 2) {
        std::this_thread::sleep_for(milliseconds(20));
        return;  // the sums go on, slowly
      }
    };
    if (worker == 3) {
      try {
        Counter(options).run(60, [&](int count, int) {
          if (count == 30) {
            throw std::runtime_error("killed");
          }
        });
      } catch (const std::runtime_error&) {
      }
      while (smallest == 4) {
        std::this_thread::sleep_for(milliseconds(10));
      }
      options.process = 33;
      Counter(options).run(2'000, watch);
      return;
    }
    Counter(options).run(2'000, watch);
  });
  EXPECT_THAT(errors, Each("")) << job.said();
  EXPECT_EQ(smallest, 2) << job.said();
  EXPECT_TRUE(has_grown) << job.said();
  EXPECT_THAT(job.said(), AllOf(HasSubstr("going on with 2 of 4 workers"), HasSubstr("the job grows from 2 to 4")));
}

TEST(ServerRegroupTest, TheJobEndsWhenNobodyComes) {
  test::ServerJob job(2, 1, waiting(milliseconds(300)));
  const std::vector<std::string> errors = test::run_workers({0, 1}, [&](int rank) {
    Counter(job.options(rank)).run(100, [&](int count, int) {
      if (rank == 1 && count == 50) {
        throw std::runtime_error("killed");
      }
    });
  });
  const std::string why = "rank 1 (worker 1) left the job before its end; 1 of 2 workers came within 0 s";
  EXPECT_THAT(errors, ElementsAre(HasSubstr(why), "killed"));
  EXPECT_EQ(job.end().cause, why);
}

TEST(ServerRegroupTest, TheJobEndsWhenAllLeave) {
  test::ServerJob job(1, 1, waiting(milliseconds(60'000)));
  const std::vector<std::string> errors = test::run_workers({0}, [&](int rank) {
    Counter(job.options(rank)).run(100, [&](int, int) { throw std::runtime_error("the disk is full"); });
  });
  EXPECT_THAT(errors, ElementsAre("the disk is full"));
  EXPECT_EQ(job.end().cause, "rank 0 (worker 0) left the job before its end");
}

TEST(ServerRegroupTest, ASlowWorkerIsNamed) {
  server::Server::Options options = waiting(milliseconds(500));
  options.slow_period = milliseconds(200);
  test::ServerJob job(2, 1, options);
  const std::vector<std::string> errors = test::run_workers({0, 1}, [&](int rank) {
    Counter(job.options(rank)).run(1'000'000, [&](int, int) {
      std::this_thread::sleep_for(milliseconds(rank == 1 ? 40 : 0));
      if (job.said().find("is slow") != std::string::npos) {
        throw std::runtime_error("seen");
      }
    });
  });
  EXPECT_THAT(job.said(), AllOf(HasSubstr("rank 1 (worker 1) is slow: the others waited for it alone for 0."),
                                Not(HasSubstr("rank 0 (worker 0) is slow"))));
}

TEST(ServerSeatingTest, TheLargestPowerOfTwoThatIsAllowed) {
  EXPECT_EQ(server::world_of(4, 4, 4), 4U);
  EXPECT_EQ(server::world_of(9, 6, 1), 6U);
  EXPECT_EQ(server::world_of(5, 6, 1), 4U);
  EXPECT_EQ(server::world_of(3, 4, 2), 2U);
  EXPECT_EQ(server::world_of(1, 4, 2), 0U);
  EXPECT_EQ(server::world_of(0, 4, 1), 0U);
}

TEST(ServerSeatingTest, RanksGoToThoseWhoAskForThem) {
  using server::Hello;
  const std::vector<Hello> workers = {Hello{.name = "a"}, Hello{.rank = 2, .name = "b"}, Hello{.rank = 0, .name = "c"},
                                      Hello{.name = "d"}};
  EXPECT_THAT(server::seats(workers, 4), ElementsAre(2, 0, 1, 3));
  EXPECT_THAT(server::seats(workers, 2), ElementsAre(2, 1));  // b is too high, and takes what is left
  EXPECT_THAT(server::seats(workers, 1), ElementsAre(2));
  const std::vector<Hello> same = {Hello{.rank = 1, .name = "a"}, Hello{.rank = 1, .name = "b"}};
  EXPECT_THAT(server::seats(same, 2), ElementsAre(1, 0));
}

TEST(ServerLatenessTest, CountsWhatTheOthersWaitedForOneAlone) {
  using Clock = server::Lateness::Clock;
  const Clock::time_point begin{};
  server::Lateness lateness(3, begin);
  const auto at = [&](int ms) { return begin + milliseconds(ms); };
  lateness.enter(0, 1, at(100));
  lateness.enter(1, 1, at(200));
  lateness.enter(1, 2, at(210));
  lateness.enter(2, 1, at(500));  // 0.3 s after the last of the others
  lateness.enter(2, 2, at(510));
  lateness.enter(0, 2, at(520));  // 0.01 s
  const auto late = lateness.take(at(1'000));
  ASSERT_EQ(late.size(), 1U);
  EXPECT_EQ(late[0].rank, 2U);
  EXPECT_DOUBLE_EQ(late[0].waited_s, 0.3);
  EXPECT_DOUBLE_EQ(late[0].of_s, 1.0);
  EXPECT_TRUE(lateness.take(at(2'000)).empty());
}

}  // namespace
}  // namespace lockstep
