// Servers that hold the weights and their workers, in one process, over the loopback address: what is enforced, and
// what lost, restarted and wrong ones do.
#include "comm/server/store_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <random>
#include <thread>

#include "base/error.h"
#include "comm/server/server.h"
#include "comm/server/store_client.h"
#include "tests/comm/relay.h"
#include "tests/comm/server_job.h"
#include "tests/comm/store_job.h"
#include "tests/support/temporary_folder.h"

namespace lockstep::server {
namespace {

using std::chrono::milliseconds;
using testing::AllOf;
using testing::Each;
using testing::HasSubstr;
using When = Pull::When;

constexpr std::size_t kCount = 600'000;  // several frames a part
constexpr std::uint64_t kSteps = 12;

class StoreJob {
 public:
  StoreJob(Mode mode, int workers, int parts = 1, std::filesystem::path state = {}) : mode_(mode), workers_(workers) {
    state_ = std::move(state);
    servers_.resize(static_cast<std::size_t>(parts));
    ports_.resize(servers_.size());
    for (std::size_t part = 0; part < servers_.size(); ++part) {
      start_server(part);
    }
  }
  void stop_server(std::size_t part) { servers_[part].reset(); }
  // From now on workers are told this port.
  void tell_port(std::size_t part, std::uint16_t port) { ports_[part] = port; }
  [[nodiscard]] std::uint16_t port(std::size_t part) const { return ports_[part]; }
  // At the port that it had before.
  void start_server(std::size_t part) {
    StoreServer::Options options;
    options.token = token_;
    options.port = ports_[part];
    options.workers = workers_;
    options.part = static_cast<int>(part);
    options.parts = static_cast<int>(servers_.size());
    options.mode = mode_;
    options.state = state_;
    options.make_rule = test::make_halving_rule;
    options.rejoin = milliseconds(300);
    options.say = [this](LogLevel, const std::string& text) {
      const std::lock_guard lock(mutex_);
      said_ += text + "\n";
    };
    servers_[part] = std::make_unique<StoreServer>(std::move(options));
    ports_[part] = servers_[part]->port();
  }
  [[nodiscard]] StoreClient::Options options(int rank, int timeout_ms = 20'000) const {
    StoreClient::Options options;
    for (const std::uint16_t port : ports_) {
      options.servers.push_back({"127.0.0.1", std::to_string(port)});
    }
    options.token = token_;
    if (rank >= 0) {
      options.rank = rank;
    }
    options.timeout_ms = timeout_ms;
    options.name = "worker " + std::to_string(rank);
    options.mode = mode_;
    return options;
  }
  [[nodiscard]] StoreServer::End end(std::size_t part = 0) {
    return servers_[part]
        ->wait_for_end(std::chrono::seconds(20))
        .value_or(StoreServer::End{false, "goes on", 0, 0, {}});
  }
  [[nodiscard]] std::string said() {
    const std::lock_guard lock(mutex_);
    return said_;
  }

 private:
  Mode mode_;
  int workers_;
  std::filesystem::path state_;
  control::JobToken token_ = control::JobToken::random();
  std::vector<std::unique_ptr<StoreServer>> servers_;
  std::vector<std::uint16_t> ports_;
  std::mutex mutex_;
  std::string said_;
};

// A worker that trains as AsyncLoop does.
class Worker {
 public:
  Worker(StoreJob& job, int rank, std::uint32_t max_staleness = 2, int timeout_ms = 20'000,
         std::uint64_t steps = kSteps, const std::string& description = "lr: 1\n")
      : weights_(kCount), exp_avg_(kCount), exp_avg_sq_(kCount), client_(job.options(rank, timeout_ms)) {
    const StoreClient::Position position = client_.open({.id = 0,
                                                         .elements = kCount,
                                                         .steps = steps,
                                                         .max_staleness = max_staleness,
                                                         .leads = 0,
                                                         .has_reached_end = 0,
                                                         .description = description});
    completed_ = position.completed;
    if (!position.is_initialized && client_.rank() == 0) {
      client_.start(0, {weights_, exp_avg_, exp_avg_sq_});
    }
  }
  [[nodiscard]] StoreClient& client() { return client_; }
  [[nodiscard]] std::uint64_t completed() const { return completed_; }
  [[nodiscard]] const std::vector<float>& weights() const { return weights_; }
  [[nodiscard]] const std::vector<float>& updates() const { return exp_avg_; }
  StoreClient::Pulled pull(When when = When::kStep, std::uint32_t arrays = 1, const std::function<void()>& poll = {}) {
    return client_.pull({.completed = completed_, .arrays = arrays, .when = when}, {weights_, exp_avg_, exp_avg_sq_},
                        poll);
  }
  void push() {
    gradient_ = test::gradient_of(static_cast<std::uint32_t>(client_.rank()), completed_, kCount);
    client_.push(completed_, 0.5F, gradient_);
    ++completed_;
  }
  // As many steps as are left, or these. Returns what the last pull said.
  Ending steps(std::uint64_t until = kSteps, const std::function<void()>& between = {}) {
    while (completed_ < until) {
      if (const StoreClient::Pulled pulled = pull(); pulled.ending != Ending::kNone) {
        return pulled.ending;
      }
      if (between) {
        between();
      }
      push();
    }
    return Ending::kNone;
  }
  StoreClient::Pulled finish() {
    const StoreClient::Pulled pulled = pull(When::kEnd, 3);
    client_.close();
    return pulled;
  }

 private:
  std::vector<float> weights_;
  std::vector<float> exp_avg_;
  std::vector<float> exp_avg_sq_;
  std::vector<float> gradient_;
  std::uint64_t completed_ = 0;
  StoreClient client_;  // goes first: it may be sending what lies above
};

// The weights after all steps of one worker.
std::vector<float> weights_of_one_worker(std::uint64_t steps = kSteps) {
  std::vector<float> weights(kCount);
  for (std::uint64_t step = 0; step < steps; ++step) {
    const std::vector<float> gradient = test::gradient_of(0, step, kCount);
    for (std::size_t i = 0; i < kCount; ++i) {
      weights[i] = 0.5F * weights[i] + 0.5F * gradient[i];
    }
  }
  return weights;
}

TEST(StoreServerTest, OneWorkersGradientsAreAppliedInOrder) {
  for (const int parts : {1, 3}) {
    StoreJob job(Mode::kAsync, 1, parts);
    Worker worker(job, -1);
    worker.steps();
    const StoreClient::Pulled last = worker.finish();
    EXPECT_EQ(last.version, kSteps);
    EXPECT_EQ(last.stale_max, 0);
    EXPECT_TRUE(last.leads);
    EXPECT_EQ(worker.weights(), weights_of_one_worker());
    EXPECT_THAT(worker.updates(), Each(static_cast<float>(kSteps)));
    for (int part = 0; part < parts; ++part) {
      const StoreServer::End end = job.end(static_cast<std::size_t>(part));
      EXPECT_TRUE(end.orderly) << end.cause;
      EXPECT_EQ(end.updates, kSteps);
      EXPECT_EQ(end.missing, 0U);
    }
  }
}

TEST(StoreServerTest, WorkersOfAllModesEndTogetherAndOneOfThemLeads) {
  for (const Mode mode : {Mode::kBounded, Mode::kAsync}) {
    StoreJob job(mode, 3, 2);
    std::atomic<int> leads = 0;
    const std::vector<std::string> errors = test::run_workers({0, 1, 2}, [&](int rank) {
      Worker worker(job, rank);
      worker.steps();
      const StoreClient::Pulled last = worker.finish();
      leads += last.leads ? 1 : 0;
      EXPECT_THAT(worker.updates(), Each(3.0F * kSteps));
      EXPECT_LE(last.stale_mean, last.stale_max);
    });
    EXPECT_THAT(errors, Each(""));
    EXPECT_GE(leads, 1);
    EXPECT_EQ(job.end(0).updates, 3 * kSteps);
    EXPECT_TRUE(job.end(1).orderly);
  }
}

// A worker is held back after two steps: the other gets exactly max_staleness further, and no step more.
TEST(StoreServerTest, NobodyRunsFurtherAheadThanAllowed) {
  for (const std::uint32_t max_staleness : {0U, 1U, 3U}) {
    StoreJob job(Mode::kBounded, 2);
    std::atomic<bool> go_on = false;
    std::atomic<std::uint64_t> ahead = 0;
    std::thread slow([&] {
      Worker worker(job, 1, max_staleness);
      worker.steps(2);
      (void)worker.pull();
      while (!go_on) {
        std::this_thread::sleep_for(milliseconds(5));
      }
      worker.push();
      worker.steps();
      (void)worker.finish();
    });
    std::thread fast([&] {
      Worker worker(job, 0, max_staleness);
      worker.steps(kSteps, [&] { ahead = worker.completed() + 1; });
      (void)worker.finish();
    });
    while (ahead < 2 + max_staleness + 1) {
      std::this_thread::sleep_for(milliseconds(5));
    }
    std::this_thread::sleep_for(milliseconds(300));
    EXPECT_EQ(ahead, 2 + max_staleness + 1);  // the step that is begun is the one behind so many done ones
    go_on = true;
    slow.join();
    fast.join();
    EXPECT_TRUE(job.end().orderly);
  }
}

// A worker whose gradients come late is given the weights as they will be by then; when it asks for those of now,
// those.
TEST(StoreServerTest, PullsForAStepLookAheadByTheUsualStaleness) {
  StoreJob job(Mode::kAsync, 2);
  std::atomic<int> turn = 0;
  const auto wait_for = [&turn](int wanted) {
    while (turn < wanted) {
      std::this_thread::sleep_for(milliseconds(1));
    }
  };
  std::thread other([&] {
    Worker worker(job, 1);
    (void)worker.pull();
    turn = 1;
    wait_for(2);
    worker.push();  // four updates behind
    const std::uint64_t version = worker.pull(When::kNow).version;
    const std::vector<float> now = worker.weights();
    EXPECT_EQ(worker.pull().version, version);
    EXPECT_EQ(worker.weights()[0], now[0] + 1.0F);  // a quarter of what was new
    turn = 3;
    worker.push();
    worker.steps();
    (void)worker.finish();
  });
  Worker worker(job, 0);
  (void)worker.pull();
  wait_for(1);
  worker.push();
  worker.steps(4);
  (void)worker.pull();
  turn = 2;
  wait_for(3);
  worker.push();
  worker.steps();
  (void)worker.finish();
  other.join();
}

TEST(StoreServerTest, InModeAsyncNobodyWaitsAndTheSlowOneIsNamed) {
  StoreJob job(Mode::kAsync, 2);
  std::atomic<bool> is_through = false;
  std::thread slow([&] {
    Worker worker(job, 1);
    (void)worker.pull();
    while (!is_through || job.said().find("is slow") == std::string::npos) {
      std::this_thread::sleep_for(milliseconds(5));
    }
    worker.push();
    worker.steps();
    (void)worker.finish();
  });
  Worker worker(job, 0);
  worker.steps();
  is_through = true;
  (void)worker.finish();
  slow.join();
  EXPECT_THAT(job.said(), AllOf(HasSubstr("rank 1 (worker 1) is slow: "), HasSubstr("steps behind rank 0 (worker 0)")));
  const StoreServer::End end = job.end();
  EXPECT_EQ(end.staleness.max, kSteps);
}

TEST(StoreServerTest, ALostWorkerIsMissedByNobodyAndItsStepsAreCounted) {
  StoreJob job(Mode::kBounded, 2);
  auto lost = std::make_unique<std::thread>([&] {
    Worker worker(job, 1);
    worker.steps(3);
    (void)worker.pull();
  });
  Worker worker(job, 0);
  worker.steps();
  lost->join();
  const StoreClient::Pulled last = worker.finish();
  EXPECT_EQ(last.missing, kSteps - 3);
  const StoreServer::End end = job.end();
  EXPECT_TRUE(end.orderly);
  EXPECT_EQ(end.missing, kSteps - 3);
  EXPECT_THAT(job.said(), HasSubstr("rank 1 (worker 1) is gone after 3 steps"));
}

TEST(StoreServerTest, AReplacementGoesOnBehindTheLastStepOfTheLostOne) {
  StoreJob job(Mode::kBounded, 2);
  std::thread other([&] {
    Worker worker(job, 0);
    worker.steps(kSteps, [] { std::this_thread::sleep_for(milliseconds(10)); });
    (void)worker.finish();
  });
  {
    Worker worker(job, 1);
    worker.steps(4);
    (void)worker.pull();
  }
  Worker worker(job, -1);  // the place that is free
  EXPECT_EQ(worker.client().rank(), 1);
  EXPECT_EQ(worker.completed(), 4U);
  worker.steps();
  (void)worker.finish();
  other.join();
  EXPECT_EQ(job.end().updates, 2 * kSteps);
  EXPECT_EQ(job.end().missing, 0U);
}

TEST(StoreServerTest, WhenTheLeadingWorkerIsLostAnotherOneLeads) {
  StoreJob job(Mode::kBounded, 2);
  std::thread first([&] {
    Worker worker(job, 0);
    worker.steps(2);
    EXPECT_TRUE(worker.pull().leads);
  });
  Worker worker(job, 1);
  worker.steps();
  first.join();
  EXPECT_TRUE(worker.finish().leads);
  EXPECT_THAT(job.said(), HasSubstr("rank 1 (worker 1) evaluates and saves from now on"));
}

// The others wait at their end until the one that leads has gone.
TEST(StoreServerTest, OneThatIsDoneLeadsWhenTheLeadingOneIsLostInTheEnd) {
  StoreJob job(Mode::kBounded, 2);
  std::thread first([&] {
    Worker worker(job, 0);
    worker.steps();
    EXPECT_TRUE(worker.pull(When::kEnd, 3).leads);
    std::this_thread::sleep_for(milliseconds(200));
  });
  Worker worker(job, 1);
  worker.steps();
  EXPECT_TRUE(worker.finish().leads);
  first.join();
}

TEST(StoreServerTest, AWishToStopReachesEverybody) {
  for (const Ending wish : {Ending::kStopped, Ending::kFinished}) {
    StoreJob job(Mode::kBounded, 2, 2);
    const std::vector<std::string> errors = test::run_workers({0, 1}, [&](int rank) {
      Worker worker(job, rank);
      Ending ending = worker.steps(rank == 1 ? 5 : kSteps);
      if (rank == 1) {
        worker.client().wish(wish);
        ending = worker.pull().ending;
      }
      EXPECT_EQ(ending, wish);
      (void)worker.finish();
    });
    EXPECT_THAT(errors, Each(""));
    EXPECT_TRUE(job.end().orderly);
    EXPECT_EQ(job.end().missing, 0U);
  }
}

// Also one that waits for another, which stands still.
TEST(StoreServerTest, AWorkerThatWaitsCanWishToStop) {
  StoreJob job(Mode::kBounded, 2);
  std::atomic<bool> is_through = false;
  std::thread still([&] {
    Worker worker(job, 1);
    (void)worker.pull();
    while (!is_through) {
      std::this_thread::sleep_for(milliseconds(5));
    }
    worker.push();
    EXPECT_EQ(worker.steps(), Ending::kStopped);
    (void)worker.finish();
  });
  Worker worker(job, 0);
  worker.steps(3);
  const StoreClient::Pulled pulled = worker.pull(When::kStep, 1, [&] { worker.client().wish(Ending::kStopped); });
  EXPECT_EQ(pulled.ending, Ending::kStopped);
  is_through = true;
  (void)worker.finish();
  still.join();
  EXPECT_TRUE(job.end().orderly);
}

// The servers are killed and started again at random moments: one worker's weights tell what was applied, and in which
// order.
TEST(StoreServerTest, AServerThatKeepsItsStateCanBeStartedAgainAtAnyMoment) {
  constexpr std::uint64_t kManySteps = 60;
  const TemporaryFolder folder;
  StoreJob job(Mode::kAsync, 1, 2, folder / "state");
  std::atomic<bool> is_over = false;
  std::string error;
  std::vector<float> weights;
  std::uint64_t version = 0;
  std::thread thread([&] {
    try {
      Worker worker(job, 0, 2, 20'000, kManySteps);
      worker.steps(kManySteps);
      version = worker.finish().version;
      weights = worker.weights();
    } catch (const Error& failure) {
      error = failure.what();
    }
    is_over = true;
  });
  std::minstd_rand random(7);
  int restarts = 0;
  while (!is_over && restarts < 12) {
    std::this_thread::sleep_for(milliseconds(20 + random() % 100));
    const std::size_t part = random() % 2;
    if (!is_over) {
      job.stop_server(part);
      job.start_server(part);
      ++restarts;
    }
  }
  thread.join();
  EXPECT_EQ(error, "");
  EXPECT_EQ(version, kManySteps);
  EXPECT_EQ(weights, weights_of_one_worker(kManySteps));
}

// Cut at random moments, or silent until the worker's patience ends: what was on its way is sent again, and counts
// once.
TEST(StoreServerTest, ALinkThatIsCutOrSilentIsMadeAgain) {
  constexpr std::uint64_t kManySteps = 40;
  for (const bool is_cut : {true, false}) {
    StoreJob job(Mode::kBounded, 1, 2);
    test::Relay first(job.port(0));
    test::Relay second(job.port(1));
    job.tell_port(0, first.port());
    job.tell_port(1, second.port());
    std::atomic<bool> is_over = false;
    std::string error;
    std::vector<float> weights;
    std::thread thread([&] {
      try {
        Worker worker(job, 0, 2, is_cut ? 20'000 : 2'000, kManySteps);
        worker.steps(kManySteps);
        (void)worker.finish();
        weights = worker.weights();
      } catch (const Error& failure) {
        error = failure.what();
      }
      is_over = true;
    });
    std::minstd_rand random(5);
    for (int i = 0; i < (is_cut ? 15 : 3) && !is_over; ++i) {
      std::this_thread::sleep_for(milliseconds(20 + random() % 100));
      test::Relay& relay = random() % 2 == 0 ? first : second;
      is_cut ? relay.cut() : relay.silence();
    }
    thread.join();
    EXPECT_EQ(error, "");
    EXPECT_EQ(weights, weights_of_one_worker(kManySteps));
    EXPECT_EQ(job.end(0).updates, kManySteps);
    EXPECT_EQ(job.end(1).updates, kManySteps);
  }
}

TEST(StoreServerTest, AServerWithoutAStateIsLost) {
  StoreJob job(Mode::kAsync, 1);
  Worker worker(job, 0);
  worker.steps(2);
  (void)worker.pull();
  job.stop_server(0);
  const auto lost = [&]() -> std::string {
    try {
      worker.push();
      (void)worker.pull();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kPeerLost);
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(lost(), HasSubstr("is gone, and it keeps no state (lockstep serve --state)"));
}

TEST(StoreServerTest, WorkersThatDifferAreRefusedWithWhatDiffers) {
  StoreJob job(Mode::kBounded, 2);
  Worker first(job, 0, 2, 20'000, kSteps, "lr: 1\ndecay: 2\n");
  const auto refusal = [&](const std::function<void()>& start) -> std::string {
    try {
      start();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUsage);
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(refusal([&] { Worker(job, 1, 2, 20'000, kSteps, "lr: 1\ndecay: 3\n"); }),
              HasSubstr("rank 1 (worker 1) has decay: 3 where the first worker has decay: 2"));
  EXPECT_THAT(refusal([&] { Worker(job, 1, 7, 20'000, kSteps, "lr: 1\ndecay: 2\n"); }),
              HasSubstr("comm.max_staleness 7 where the first worker has 600000, 12 and 2"));
  EXPECT_THAT(refusal([&] { Worker(job, 0, 2, 20'000, kSteps, "lr: 1\ndecay: 2\n"); }),
              HasSubstr("rank 0 (worker 0) is here already"));
  StoreClient::Options options = job.options(1);
  options.mode = Mode::kAsync;
  EXPECT_THAT(refusal([&] { StoreClient client(options); }),
              HasSubstr("the worker has comm.mode async, but the server was started with --mode bounded"));
  Session::Options session;
  session.servers = options.servers;
  session.token = options.token;
  EXPECT_THAT(refusal([&] { Session sync(session); }),
              HasSubstr("the worker has comm.mode sync, but the server was started with --mode bounded"));
}

TEST(StoreServerTest, AServerThatAddsRefusesWorkersOfOtherModes) {
  Server::Options options;
  Server server(options);
  StoreClient::Options worker;
  worker.servers = {{"127.0.0.1", std::to_string(server.port())}};
  worker.token = options.token;
  try {
    StoreClient client(worker);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(),
                HasSubstr("the worker has comm.mode bounded, but the server was started with --mode sync"));
  }
}

TEST(StoreServerTest, AWorkerThatNeverComesEndsTheJob) {
  StoreJob job(Mode::kAsync, 2);
  Worker worker(job, 0, 2, 400);
  try {
    (void)worker.pull();
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kTimeout);
    EXPECT_THAT(error.what(), HasSubstr("rank 1, which has not come, kept the others waiting"));
  }
  EXPECT_FALSE(job.end().orderly);
}

// One that is there but says nothing: after the others' patience it is taken for lost, and may come back.
TEST(StoreServerTest, AWorkerThatKeepsOthersWaitingInSilenceIsTakenForLostAndComesBack) {
  StoreJob job(Mode::kBounded, 2);
  std::atomic<bool> is_through = false;
  std::thread silent([&] {
    Worker worker(job, 1);
    (void)worker.pull();
    while (!is_through) {
      std::this_thread::sleep_for(milliseconds(5));
    }
    worker.push();
    worker.steps();
    (void)worker.finish();
  });
  {
    Worker worker(job, 0, 2, 500);
    worker.steps();
    is_through = true;
    (void)worker.finish();
  }
  silent.join();
  EXPECT_THAT(job.said(), HasSubstr("it is taken for lost"));
  EXPECT_TRUE(job.end().orderly);
}

TEST(StoreServerTest, AFailureEndsTheJobForAll) {
  StoreJob job(Mode::kAsync, 2, 3);
  const std::vector<std::string> errors = test::run_workers({0, 1}, [&](int rank) {
    Worker worker(job, rank);
    worker.steps(2);
    if (rank == 1) {
      (void)worker.pull();
      worker.client().fail(Error(ErrorCode::kDiverged, "rank 1, step 3: the loss is nan"));
      return;
    }
    worker.steps();
    (void)worker.finish();
  });
  EXPECT_EQ(errors[0], "rank 1, step 3: the loss is nan");
  for (const std::size_t part : {0, 1, 2}) {
    EXPECT_EQ(job.end(part).cause, "rank 1, step 3: the loss is nan");
  }
}

TEST(StoreServerTest, AJobWithoutWorkersEnds) {
  StoreJob job(Mode::kAsync, 1);
  {
    Worker worker(job, 0, 2, 400);
    worker.steps(2);
  }
  const StoreServer::End end = job.end();
  EXPECT_FALSE(end.orderly);
  EXPECT_THAT(end.cause, HasSubstr("all workers are gone"));
}

}  // namespace
}  // namespace lockstep::server
