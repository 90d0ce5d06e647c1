// Servers that hold the weights and their workers: what lost, restarted, late and wrong ones do.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <random>
#include <thread>

#include "base/error.h"
#include "tests/comm/relay.h"
#include "tests/comm/store_server_fixture.h"
#include "tests/support/temporary_folder.h"

namespace lockstep::server {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;
using When = Pull::When;

TEST(StoreServerFaultsTest, ALostWorkerIsMissedByNobodyAndItsStepsAreCounted) {
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

TEST(StoreServerFaultsTest, AReplacementGoesOnBehindTheLastStepOfTheLostOne) {
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

TEST(StoreServerFaultsTest, WhenTheLeadingWorkerIsLostAnotherOneLeads) {
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
TEST(StoreServerFaultsTest, OneThatIsDoneLeadsWhenTheLeadingOneIsLostInTheEnd) {
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

// The servers are killed and started again at random moments: one worker's weights tell what was applied, and in which
// order.
TEST(StoreServerFaultsTest, AServerThatKeepsItsStateCanBeStartedAgainAtAnyMoment) {
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
TEST(StoreServerFaultsTest, ALinkThatIsCutOrSilentIsMadeAgain) {
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

TEST(StoreServerFaultsTest, AServerWithoutAStateIsLost) {
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

TEST(StoreServerFaultsTest, WorkersThatDifferAreRefusedWithWhatDiffers) {
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

TEST(StoreServerFaultsTest, AServerThatAddsRefusesWorkersOfOtherModes) {
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

TEST(StoreServerFaultsTest, AWorkerThatNeverComesEndsTheJob) {
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
TEST(StoreServerFaultsTest, AWorkerThatKeepsOthersWaitingInSilenceIsTakenForLostAndComesBack) {
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

TEST(StoreServerFaultsTest, AFailureEndsTheJobForAll) {
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

TEST(StoreServerFaultsTest, AJobWithoutWorkersEnds) {
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
