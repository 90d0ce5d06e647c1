// Servers that hold the weights and their workers: what each mode enforces, and how a job ends.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <thread>

#include "tests/comm/store_server_fixture.h"

namespace lockstep::server {
namespace {

using std::chrono::milliseconds;
using testing::AllOf;
using testing::Each;
using testing::HasSubstr;
using When = Pull::When;

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
  std::promise<void> has_pulled;
  std::atomic<bool> is_through = false;
  std::thread slow([&] {
    Worker worker(job, 1);
    (void)worker.pull();
    has_pulled.set_value();
    while (!is_through || job.said().find("is slow") == std::string::npos) {
      std::this_thread::sleep_for(milliseconds(5));
    }
    worker.push();
    worker.steps();
    (void)worker.finish();
  });
  Worker worker(job, 0);
  has_pulled.get_future().wait();
  worker.steps();
  is_through = true;
  (void)worker.finish();
  slow.join();
  EXPECT_THAT(job.said(), AllOf(HasSubstr("rank 1 (worker 1) is slow: "), HasSubstr("steps behind rank 0 (worker 0)")));
  const StoreServer::End end = job.end();
  EXPECT_EQ(end.staleness.max, kSteps);
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

}  // namespace
}  // namespace lockstep::server
