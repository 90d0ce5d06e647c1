// comm.mode bounded and async: what servers keep with --state, and when it is not gone on from.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tests/launcher/store_modes_fixture.h"

namespace lockstep {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// kill -9 at random moments; with one worker the weights show every update that was lost or made twice.
TEST_F(StoreModesTest, KilledServersThatKeepTheirStateLoseNothing) {
  const Words settings = {"train.steps=600", "checkpoint.every_steps=200"};
  const TrainingJob::Result expected = alone("unkilled", settings);
  const std::string state = (job_->folder() / "state").string();
  TrainingJob::ServedRun run = start("killed", 1, "async", 1, settings, {"--state", state});
  const std::string address = address_of(run);
  const std::string port = address.substr(address.find(':') + 1);
  std::minstd_rand random(3);
  int kills = 0;
  while (kills < 5 && wait_until([&] { return !metrics("killed").empty(); }) && run.workers[0]->is_running()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50 + random() % 150));
    run.servers[0]->send(SIGKILL);
    (void)run.servers[0]->wait();
    run.servers[0] =
        again({LOCKSTEP_PROGRAM, "serve", "--workers", "1", "--port", port, "--mode", "async", "--state", state});
    ++kills;
    ASSERT_TRUE(wait_until([&] { return !run.servers[0]->out().empty(); })) << run.servers[0]->err();
  }
  EXPECT_GT(kills, 0);
  EXPECT_THAT(end(run), HasSubstr("600 updates"));
  EXPECT_EQ(job_->result("killed"), expected);
  EXPECT_EQ(job_->curve("killed"), job_->curve("unkilled"));
  EXPECT_FALSE(std::filesystem::exists(std::filesystem::path(state) / "part-1-of-1.snapshot"));
}

// Servers and workers killed, the run gone on with without servers, and the job started again with the same words.
TEST_F(StoreModesTest, AnOldStateDoesNotBeatNewerCheckpoints) {
  const Words settings = {"train.steps=300", "checkpoint.every_steps=50", "checkpoint.keep=10"};
  const std::filesystem::path state = job_->folder() / "old-state";
  const Words kept = {"--state", state};
  TrainingJob::ServedRun run = start("older", 1, "bounded", 1, settings, kept);
  ASSERT_TRUE(wait_until([&] { return metrics("older").size() > 80; })) << run.workers[0]->err();
  kill_all(run);
  alone("older", settings);
  const std::vector<TrainingJob::Result> results = job_->results("older");
  ASSERT_EQ(results.back().step, 300);
  for (int tries = 0; tries < 2; ++tries) {
    run = start("older", 1, "bounded", 1, settings, kept);
    const ProcessResult worker = run.workers[0]->wait();
    EXPECT_EQ(worker.exit_code, 2);
    EXPECT_THAT(worker.err, AllOf(HasSubstr("the servers have kept run older after "),
                                  HasSubstr("step-00000300 is newer; remove their state folders to go on from it")));
    EXPECT_EQ(run.servers[0]->wait().exit_code, 1);
    EXPECT_EQ(job_->results("older"), results);
    EXPECT_TRUE(std::filesystem::exists(state / "part-1-of-1.snapshot"));
  }
  std::filesystem::remove_all(state);
  run = start("older", 1, "bounded", 1, settings, kept);
  (void)end(run);
  EXPECT_EQ(job_->results("older"), results);
}

TEST_F(StoreModesTest, AStateIsNotTakenForAnotherRunOrAgainstResume) {
  const Words settings = {"train.steps=300", "checkpoint.every_steps=50"};
  const TrainingJob::Result expected = alone("unasked", settings);
  const std::filesystem::path state = job_->folder() / "asked-state";
  const auto again_with = [&](const std::string& name, const Words& options, const Words& more = {}) {
    return job_->start_with_servers(
        {name, 1, settings + Words{"comm.mode=async"} + more, options, {"--mode", "async", "--state", state}}, 1,
        Ranks::kByHand);
  };
  const auto refusal = [&](TrainingJob::ServedRun run) {
    const ProcessResult worker = run.workers[0]->wait();
    EXPECT_EQ(worker.exit_code, 2) << worker.err;
    kill_all(run);
    return worker.err;
  };
  TrainingJob::ServedRun run = again_with("asked", {});
  ASSERT_TRUE(wait_until([&] { return metrics("asked").size() > 20; })) << run.workers[0]->err();
  kill_all(run);
  EXPECT_THAT(refusal(again_with("asked", {"--resume", "none"})),
              HasSubstr("--resume none, but the servers have kept run asked after "));
  EXPECT_THAT(refusal(again_with("asked", {"--resume", job_->checkpoints("unasked") / "step-00000300"})),
              HasSubstr("step-00000300, but the servers have kept run asked after "));
  EXPECT_THAT(refusal(again_with("other", {"--resume", "none"})),
              HasSubstr(R"(has "run.name": "other" where the state in )" + state.string() +
                        R"( has "run.name": "asked"; when that is another job's, remove )" + state.string()));
  EXPECT_THAT(refusal(again_with("asked", {}, {"run.dir=" + (job_->folder() / "elsewhere").string()})),
              HasSubstr(", but there is no " + (job_->folder() / "elsewhere" / "asked").string()));
  run = again_with("asked", {});
  (void)end(run);
  EXPECT_EQ(job_->result("asked"), expected);
}

// Part of the state is gone.
TEST_F(StoreModesTest, ServersOfWhichOneAloneHasKeptItsStateAreNotMixed) {
  const Words settings = {"train.steps=1000000", "checkpoint.every_steps=50"};
  const std::filesystem::path state = job_->folder() / "half-state";
  TrainingJob::ServedRun run = start("half", 1, "async", 2, settings, {"--state", state});
  ASSERT_TRUE(wait_until([&] { return metrics("half").size() > 20; })) << run.workers[0]->err();
  kill_all(run);
  std::filesystem::remove(state / "part-1-of-2.snapshot");
  run = start("half", 1, "async", 2, settings, {"--state", state});
  const ProcessResult worker = run.workers[0]->wait();
  EXPECT_EQ(worker.exit_code, 2);
  EXPECT_THAT(worker.err, HasSubstr("some of the servers have kept this run (lockstep serve --state) and others hold "
                                    "nothing; remove the state folders of all"));
}

// The same words again are no wish to begin anew.
TEST_F(StoreModesTest, AWorkerComesBackToItsServersWhateverItsResumeSays) {
  const Words settings = {"train.steps=400", "checkpoint.every_steps=50"};
  const TrainingJob::Result expected = alone("unlost", settings);
  const std::filesystem::path state = job_->folder() / "lost-state";
  TrainingJob::ServedRun run = job_->start_with_servers(
      {"lost", 1, settings + Words{"comm.mode=async"}, {"--resume", "none"}, {"--mode", "async", "--state", state}}, 1,
      Ranks::kByHand);
  ASSERT_TRUE(wait_until([&] { return metrics("lost").size() > 20; })) << run.workers[0]->err();
  run.workers[0]->send(SIGKILL);
  (void)run.workers[0]->wait();
  run.workers[0] = run.worker_starts[0].again();
  EXPECT_THAT(end(run), HasSubstr("400 updates"));
  EXPECT_EQ(job_->result("lost"), expected);
}

TEST_F(StoreModesTest, AStateThatHasDivergedIsNotGoneOnFrom) {
  alone("diverged", {"train.steps=8"});
  const std::filesystem::path state = job_->folder() / "diverged-state";
  const Words kept = {"--state", state};
  TrainingJob::ServedRun run =
      start("diverged", 1, "bounded", 2,
            {"optimizer.lr=1e30", "schedule.name=constant", "schedule.warmup_steps=0", "optimizer.clip_norm=0"}, kept);
  const ProcessResult worker = run.workers[0]->wait();
  EXPECT_EQ(worker.exit_code, 1);
  EXPECT_THAT(worker.err, HasSubstr("the job goes on from its newest checkpoint"));
  for (const std::unique_ptr<Process>& server : run.servers) {
    EXPECT_EQ(server->wait().exit_code, 1);
  }
  for (const auto& entry : std::filesystem::directory_iterator(state)) {
    EXPECT_EQ(entry.path().extension(), ".lock") << entry.path();
  }
  run = start("diverged", 1, "bounded", 2, {}, kept);
  (void)end(run);
  EXPECT_EQ(job_->result("diverged").step, 24);
}

TEST_F(StoreModesTest, AServerWithoutAStateEndsTheJobWhenItIsKilled) {
  TrainingJob::ServedRun run = start("stateless", 2, "bounded", 1, {"train.steps=1000000"});
  ASSERT_TRUE(wait_until([&] { return metrics("stateless").size() > 20; })) << run.workers[0]->err();
  run.servers[0]->send(SIGKILL);
  for (const std::unique_ptr<Process>& worker : run.workers) {
    const ProcessResult result = worker->wait();
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_THAT(result.err, HasSubstr("is gone, and it keeps no state (lockstep serve --state)"));
  }
}

TEST_F(StoreModesTest, ARecoveredServerToWhichNobodyCameBackStopsAtOnceAndKeepsItsState) {
  const Words settings = {"train.steps=1000000"};
  const std::filesystem::path state = job_->folder() / "lonely-state";
  TrainingJob::ServedRun run = start("lonely", 1, "async", 1, settings, {"--state", state});
  ASSERT_TRUE(wait_until([&] { return metrics("lonely").size() > 20; })) << run.workers[0]->err();
  kill_all(run);
  const std::unique_ptr<Process> server = run.server_starts[0].again();
  ASSERT_TRUE(wait_until([&] { return !server->out().empty(); })) << server->err();
  server->send(SIGTERM);
  EXPECT_EQ(server->wait(20).exit_code, 75);
  EXPECT_TRUE(std::filesystem::exists(state / "part-1-of-1.snapshot"));
}

}  // namespace
}  // namespace lockstep
