// comm.mode bounded and async: workers that are killed or stand still, and jobs that are told to stop.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "tests/launcher/store_modes_fixture.h"

namespace lockstep {
namespace {

using testing::HasSubstr;

TEST_F(StoreModesTest, AKilledWorkerIsReplacedAndEachStepCountsOnce) {
  const Words settings = {"train.steps=1500", "checkpoint.every_steps=500"};
  TrainingJob::ServedRun run = start("replaced", 2, "async", 1, settings);
  ASSERT_TRUE(wait_until([&] { return metrics("replaced").size() > 20; })) << run.workers[0]->err();
  run.workers[1]->send(SIGKILL);
  (void)run.workers[1]->wait();
  Words train = job_->command({"replaced", 2, settings});
  train.erase(train.begin(), train.begin() + 2);
  train.insert(train.end(), {"--set", "comm.backend=server", "--set", "comm.mode=async", "--set",
                             "comm.servers=" + address_of(run)});
  run.workers[1] = again(train, {"LOCKSTEP_RANK=1", "LOCKSTEP_WORLD_SIZE=2"});
  const std::string said = end(run);
  EXPECT_THAT(said, HasSubstr("3000 updates"));
  EXPECT_THAT(said, testing::Not(HasSubstr("steps of lost workers")));
  EXPECT_EQ(job_->result("replaced").step, 1500);
}

TEST_F(StoreModesTest, AKilledWorkerThatStaysAwayEndsNothing) {
  TrainingJob::ServedRun run = start("unreplaced", 2, "bounded", 1, {"train.steps=600"});
  ASSERT_TRUE(wait_until([&] { return metrics("unreplaced").size() > 20; })) << run.workers[0]->err();
  run.workers[0]->send(SIGKILL);  // the one that evaluates and saves
  (void)run.workers[0]->wait();
  run.workers.erase(run.workers.begin());
  const std::string said = end(run);
  EXPECT_THAT(said, HasSubstr("rank 1 (host "));
  EXPECT_THAT(said, HasSubstr(" evaluates and saves from now on"));
  EXPECT_THAT(said, HasSubstr("steps of lost workers are missing"));
  EXPECT_LT(job_->result("unreplaced").step, 600);
  EXPECT_GT(job_->result("unreplaced").step, 300);
}

// It holds the run's lock meanwhile; when it is back it is an ordinary worker.
TEST_F(StoreModesTest, ALeadingWorkerThatStandsStillIsFollowedWhenItLetsGo) {
  const std::string trace = (job_->folder() / "trace-leads").string();
  TrainingJob::ServedRun run =
      start("leads", 2, "bounded", 1,
            {"train.steps=1000000", "comm.timeout_s=5", "checkpoint.every_steps=100", "data.trace=" + trace});
  ASSERT_TRUE(wait_until([&] { return begun(trace, 0) > 5 && begun(trace, 1) > 5; })) << run.workers[0]->err();
  run.workers[0]->send(SIGSTOP);
  const auto second_says = [&](const char* what) { return times(run.workers[1]->err(), what); };
  ASSERT_TRUE(wait_until([&] { return second_says("the worker that led still holds") > 0; })) << run.workers[1]->err();
  const int steps = begun(trace, 1);
  ASSERT_TRUE(wait_until([&] { return begun(trace, 1) > steps + 20; })) << run.workers[1]->err();
  EXPECT_EQ(second_says("is free; rank 1 evaluates and saves from now on"), 0);
  run.workers[0]->send(SIGCONT);
  ASSERT_TRUE(wait_until([&] { return second_says("is free; rank 1 evaluates and saves from now on") > 0; }))
      << run.workers[1]->err();
  run.workers[0]->send(SIGTERM);
  EXPECT_THAT(end(run, 75), HasSubstr("evaluates and saves from now on"));
  EXPECT_EQ(second_says("the worker that led still holds"), 1);
  EXPECT_EQ(second_says("is free; rank 1 evaluates and saves from now on"), 1);
  EXPECT_EQ(times(run.workers[0]->err(), "rank 0 evaluates and saves\n"), 1);
  EXPECT_GT(job_->result("leads").step, steps / 2);
}

TEST_F(StoreModesTest, ALeadingWorkerThatNeverLetsGoIsNamedInTheEnd) {
  const std::string trace = (job_->folder() / "trace-holds").string();
  TrainingJob::ServedRun run =
      start("holds", 2, "bounded", 1, {"train.steps=60", "comm.timeout_s=3", "data.trace=" + trace});
  ASSERT_TRUE(wait_until([&] { return begun(trace, 0) > 5 && begun(trace, 1) > 5; })) << run.workers[0]->err();
  run.workers[0]->send(SIGSTOP);
  const ProcessResult second = run.workers[1]->wait(120);
  EXPECT_EQ(second.exit_code, 1);
  EXPECT_THAT(second.err, HasSubstr("the worker that led is lost, but still holds "));
  EXPECT_EQ(run.servers[0]->wait().exit_code, 1);
}

TEST_F(StoreModesTest, AStoppedRunSavesAndGoesOn) {
  const Words settings = {"train.steps=400", "checkpoint.every_steps=0", "evaluate.every_steps=50"};
  const TrainingJob::Result expected = alone("unstopped", settings);
  TrainingJob::ServedRun first = start("resumed", 1, "async", 1, settings);
  ASSERT_TRUE(wait_until([&] { return metrics("resumed").size() > 20; })) << first.workers[0]->err();
  first.workers[0]->send(SIGTERM);
  (void)end(first, 75);
  EXPECT_LT(job_->result("resumed").step, 400);
  TrainingJob::ServedRun second = start("resumed", 1, "async", 1, settings);
  (void)end(second);
  EXPECT_EQ(job_->result("resumed"), expected);
  EXPECT_EQ(job_->curve("resumed"), job_->curve("unstopped"));

  TrainingJob::ServedRun two = start("stopped-two", 2, "bounded", 2, {"train.steps=1000000"});
  ASSERT_TRUE(wait_until([&] { return metrics("stopped-two").size() > 20; })) << two.workers[0]->err();
  two.workers[1]->send(SIGTERM);
  (void)end(two, 75);
  EXPECT_GT(job_->result("stopped-two").step, 0);
}

// One of the servers, of which the others are told by the workers.
TEST_F(StoreModesTest, AServerThatIsToldToStopLetsItsWorkersSave) {
  TrainingJob::ServedRun run = start("server-stopped", 2, "bounded", 2, {"train.steps=1000000"});
  ASSERT_TRUE(wait_until([&] { return metrics("server-stopped").size() > 20; })) << run.workers[0]->err();
  run.servers[1]->send(SIGTERM);
  (void)end(run, 75);
  EXPECT_THAT(run.servers[1]->err(), HasSubstr("the workers have 30 s to save and end"));
  EXPECT_GT(job_->result("server-stopped").step, 0);
}

TEST_F(StoreModesTest, ASecondSignalEndsAServerAtOnce) {
  TrainingJob::ServedRun run = start("twice", 1, "async", 1, {"train.steps=1000000"});
  ASSERT_TRUE(wait_until([&] { return metrics("twice").size() > 20; })) << run.workers[0]->err();
  run.workers[0]->send(SIGSTOP);
  run.servers[0]->send(SIGTERM);
  ASSERT_TRUE(wait_until([&] { return times(run.servers[0]->err(), "a second signal ends the job at once") > 0; }));
  std::this_thread::sleep_for(std::chrono::seconds(1));  // sooner it would count as the first
  run.servers[0]->send(SIGTERM);
  const ProcessResult server = run.servers[0]->wait(20);
  EXPECT_EQ(server.exit_code, 1);
  EXPECT_THAT(server.err, HasSubstr(" was stopped by a signal"));
}

// The leading worker has taken all its steps and waits for the other, which is told to stop.
TEST_F(StoreModesTest, AJobThatIsStoppedWhileItsLeaderWaitsIsNotFinished) {
  const std::string trace = (job_->folder() / "trace-waits").string();
  const Words settings = {"train.steps=60", "checkpoint.every_steps=0", "evaluate.every_steps=0"};
  TrainingJob::ServedRun run = start("waits", 2, "async", 1, settings + Words{"data.trace=" + trace});
  ASSERT_TRUE(wait_until([&] { return begun(trace, 1) > 3; })) << run.workers[1]->err();
  run.workers[1]->send(SIGSTOP);
  ASSERT_TRUE(wait_until([&] { return metrics("waits").size() >= 59; })) << run.workers[0]->err();
  run.workers[1]->send(SIGTERM);
  run.workers[1]->send(SIGCONT);
  (void)end(run, 75);
  EXPECT_LT(job_->result("waits").step, 60);
  for (const nlohmann::json& line : metrics("waits")) {
    EXPECT_FALSE(line.contains("valid_loss")) << line;
  }
  TrainingJob::ServedRun rest = start("waits", 2, "async", 1, settings);
  (void)end(rest);
  EXPECT_EQ(job_->result("waits").step, 60);
}

}  // namespace
}  // namespace lockstep
