// Training through parameter servers that hold the weights (comm.mode bounded and async), as people run it: the bits of
// one worker, what several come to, and what killed, stopped and restarted processes do.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <thread>

#include "tests/support/training_job.h"

namespace lockstep {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using Words = std::vector<std::string>;
using Ranks = TrainingJob::Ranks;

Words operator+(Words a, const Words& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

int times(const std::string& text, const std::string& what) {
  int count = 0;
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) {
    ++count;
  }
  return count;
}

class StoreModesTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { job_ = new TrainingJob({LOCKSTEP_PROGRAM, LOCKSTEP_MPIRUN}); }
  static void TearDownTestSuite() {
    delete job_;
    job_ = nullptr;
  }

  static TrainingJob::ServedRun start(const std::string& name, int ranks, const std::string& mode, int servers = 1,
                                      Words settings = {}, Words serve_options = {}) {
    settings.push_back("comm.mode=" + mode);
    serve_options.insert(serve_options.end(), {"--mode", mode});
    return job_->start_with_servers({name, ranks, settings, {}, serve_options}, servers, Ranks::kByHand);
  }
  // All processes end in order. Returns what the first server said.
  static std::string end(TrainingJob::ServedRun& run, int exit_code = 0) {
    for (const std::unique_ptr<Process>& worker : run.workers) {
      const ProcessResult result = worker->wait(120);
      EXPECT_EQ(result.exit_code, exit_code) << result.err;
    }
    std::string said;
    for (const std::unique_ptr<Process>& server : run.servers) {
      const ProcessResult result = server->wait();
      EXPECT_EQ(result.exit_code, 0) << result.err;
      said = said.empty() ? result.err : said;
    }
    return said;
  }
  static TrainingJob::Result alone(const std::string& name, const Words& settings = {}) {
    const ProcessResult result = job_->train({name, 1, settings});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return job_->result(name);
  }
  static std::vector<nlohmann::json> metrics(const std::string& name) {
    std::vector<nlohmann::json> lines;
    std::ifstream file(job_->folder() / "runs" / name / "metrics.jsonl");
    for (std::string line; std::getline(file, line);) {
      lines.push_back(nlohmann::json::parse(line, nullptr, false));
    }
    return lines;
  }
  static bool wait_until(const std::function<bool()>& condition) {
    for (int tries = 0; tries < 6000 && !condition(); ++tries) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return condition();
  }
  // Steps that a rank with data.trace has begun.
  static int begun(const std::string& trace, int rank) {
    std::set<std::string> steps;
    std::ifstream file(trace + ".rank" + std::to_string(rank));
    for (std::string line; std::getline(file, line);) {
      steps.insert(line.substr(0, line.find(' ')));
    }
    return static_cast<int>(steps.size());
  }
  // Worker `rank` of a run once more, or `lockstep serve` of its part.
  static std::unique_ptr<Process> again(const Words& words, const Words& environment = {}) {
    Words all = {"LOCKSTEP_TOKEN_FILE=" + (job_->folder() / "token").string()};
    all.insert(all.end(), environment.begin(), environment.end());
    return std::make_unique<Process>(words, all);
  }
  static void kill_all(TrainingJob::ServedRun& run) {
    for (const auto* const processes : {&run.servers, &run.workers}) {
      for (const std::unique_ptr<Process>& process : *processes) {
        process->send(SIGKILL);
        (void)process->wait();
      }
    }
  }
  static std::string address_of(const TrainingJob::ServedRun& run) {
    const std::string out = run.servers[0]->out();
    return out.substr(0, out.find('\n'));
  }

  static TrainingJob* job_;
};
TrainingJob* StoreModesTest::job_ = nullptr;

TEST_F(StoreModesTest, OneWorkerHasTheBitsOfARunWithoutServers) {
  for (const std::string precision : {"fp32", "bf16"}) {
    const Words settings = {"train.precision=" + precision};
    const TrainingJob::Result expected = alone("alone-" + precision, settings);
    for (const auto& [mode, servers] : {std::pair("async", 1), std::pair("bounded", 2)}) {
      const std::string name = std::string(mode) + "-" + precision;
      TrainingJob::ServedRun run = start(name, 1, mode, servers, settings);
      EXPECT_THAT(end(run), HasSubstr("24 updates, 0.00 steps behind on average, 0.00 at most"));
      EXPECT_EQ(job_->result(name), expected);
      EXPECT_EQ(job_->results(name), job_->results("alone-" + precision));
      EXPECT_EQ(job_->curve(name), job_->curve("alone-" + precision));
    }
  }
}

// Adapters, and pairs of answers, whose reference is the model itself or a copy of it.
TEST_F(StoreModesTest, TunedModelsHaveTheBitsOfARunWithoutServers) {
  const Words wide = {"model.context=64"};
  alone("base", wide);
  const std::string base = (job_->checkpoints("base") / "step-00000024").string();
  std::ofstream file(job_->folder() / "pairs.jsonl");
  for (int i = 0; i < 60; ++i) {
    file << R"({"prompt": "count to )" << i % 7 << R"(", "chosen": ")" << std::string("1234567", i % 7 + 1)
         << R"(", "rejected": ")" << std::string("7654321", i % 5 + 1) << "\"}\n";
  }
  file.close();
  const std::filesystem::path pairs = job_->folder() / "pairs";
  const ProcessResult packed =
      run_process({LOCKSTEP_PROGRAM, "pack", "--format", "pairs", "--template", "default", "--tokenizer", base,
                   "--split", "0.8,0.2,0", "--max-tokens", "48", "--out", pairs, job_->folder() / "pairs.jsonl"});
  ASSERT_EQ(packed.exit_code, 0) << packed.err;
  const Words tuned = wide + Words{"model.from=" + base, "schedule.name=constant"};
  const Words lora = tuned + Words{"tune.method=lora", "tune.dropout=0.1", "tune.lora_plus=16", "tune.dora=true"};
  const Words preferences = {"data.train=" + (pairs / "train").string(), "data.valid=" + (pairs / "valid").string(),
                             "preference.sft=0.1", "evaluate.every_steps=2"};
  const std::vector<std::pair<std::string, Words>> cases = {
      {"lora", lora},
      {"frozen", tuned + Words{"tune.method=freeze", "tune.blocks=1"}},
      {"dpo", tuned + preferences},
      {"dpo-lora", lora + preferences}};
  for (const auto& [name, settings] : cases) {
    SCOPED_TRACE(name);
    const TrainingJob::Result expected = alone(name, settings);
    TrainingJob::ServedRun run = start(name + "-served", 1, "async", 2, settings);
    end(run);
    EXPECT_EQ(job_->result(name + "-served"), expected);
    EXPECT_EQ(job_->curve(name + "-served"), job_->curve(name));
    // The first part elsewhere.
    alone(name + "-moved", settings + Words{"train.steps=10"});
    run = start(name + "-moved", 1, "bounded", 1, settings);
    end(run);
    EXPECT_EQ(job_->result(name + "-moved"), expected);
    run = start(name + "-two", 2, "bounded", 1, settings);
    end(run);
    EXPECT_EQ(job_->result(name + "-two").step, 24);
  }
}

// Workers that tune different models do not belong together.
TEST_F(StoreModesTest, WorkersWithAnotherModelAreRefused) {
  alone("one-base");
  alone("other-base", {"run.seed=2"});
  const auto from = [](const std::string& run) {
    return Words{"tune.method=lora", "train.steps=100000",
                 "model.from=" + (job_->checkpoints(run) / "step-00000024").string()};
  };
  TrainingJob::ServedRun run = start("two-bases", 2, "async", 1, from("one-base"));
  Words other = run.worker_starts[1].words;
  for (const std::string& setting : from("other-base")) {
    other.insert(other.end(), {"--set", setting});
  }
  EXPECT_TRUE(wait_until([&] { return run.workers[0]->err().find("evaluates and saves") != std::string::npos; }));
  run.workers[1]->send(SIGKILL);
  run.workers[1]->wait();
  const std::unique_ptr<Process> stranger = again(other, run.worker_starts[1].environment);
  const ProcessResult refused = stranger->wait();
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_THAT(refused.err, HasSubstr("model.from"));
}

TEST_F(StoreModesTest, TwoWorkersUseEachSampleOnceAndSayHowStaleTheirGradientsWere) {
  for (const std::string mode : {"bounded", "async"}) {
    const std::string trace = (job_->folder() / ("trace-" + mode)).string();
    TrainingJob::ServedRun run = start(mode, 2, mode, 2, {"data.trace=" + trace, "comm.max_staleness=2"});
    EXPECT_THAT(end(run), HasSubstr("48 updates, "));
    EXPECT_EQ(job_->result(mode).step, 24);
    EXPECT_EQ(begun(trace, 0), 24);
    EXPECT_EQ(begun(trace, 1), 24);
    std::set<std::string> samples;
    for (const int rank : {0, 1}) {
      std::ifstream file(trace + ".rank" + std::to_string(rank));
      for (std::string line; std::getline(file, line);) {
        EXPECT_TRUE(samples.insert(line).second) << line;
      }
    }
    EXPECT_EQ(samples.size(), 24U * 8U * 2U);
    int steps = 0;
    for (const nlohmann::json& line : metrics(mode)) {
      if (line.contains("loss")) {
        ++steps;
        EXPECT_GE(line.at("staleness").get<double>(), 0.0);
        // Between a worker's pull and its push the other makes at most 2 * max_staleness + 2 steps, of half a step
        // each.
        EXPECT_TRUE(mode == "async" || line.at("staleness").get<double>() <= 3.0) << line;
      }
    }
    EXPECT_GE(steps, 23);
    EXPECT_THAT(run.workers[0]->err() + run.workers[1]->err(), HasSubstr("train: gradients were "));
  }
}

TEST_F(StoreModesTest, AWorkerThatStandsStillIsNotLeftBehindFurtherThanAllowed) {
  const std::string trace = (job_->folder() / "trace-stopped").string();
  TrainingJob::ServedRun run =
      start("stopped", 2, "bounded", 1, {"train.steps=1000", "comm.max_staleness=3", "data.trace=" + trace});
  ASSERT_TRUE(wait_until([&] { return begun(trace, 0) > 5 && begun(trace, 1) > 5; })) << run.workers[0]->err();
  run.workers[1]->send(SIGSTOP);
  // The last step that it began may have been pushed or not.
  const auto ahead = [&] { return begun(trace, 0) - begun(trace, 1); };
  ASSERT_TRUE(wait_until([&] { return ahead() >= 3; }));
  std::this_thread::sleep_for(std::chrono::seconds(1));
  EXPECT_LE(ahead(), 4);
  EXPECT_LT(begun(trace, 0), 1000);
  ASSERT_TRUE(wait_until([&] {
    return run.servers[0]->err().find("rank 1 (host ") != std::string::npos &&
           run.servers[0]->err().find("is slow: ") != std::string::npos;
  }));
  run.workers[1]->send(SIGCONT);
  EXPECT_THAT(end(run), HasSubstr("2000 updates"));
}

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

TEST_F(StoreModesTest, ARunMovesBetweenTheModesAtCheckpoints) {
  const Words constant = {"schedule.name=constant"};
  const auto with_steps = [&](int steps) {
    Words settings = constant;
    settings.push_back("train.steps=" + std::to_string(steps));
    return settings;
  };
  const TrainingJob::Result expected = alone("unmoved", constant);
  EXPECT_EQ(alone("moved", with_steps(8)).step, 8);
  TrainingJob::ServedRun async = start("moved", 1, "async", 2, with_steps(16));
  (void)end(async);
  EXPECT_EQ(job_->result("moved").step, 16);
  const ProcessResult last = job_->train({"moved", 2, constant});
  EXPECT_EQ(last.exit_code, 0) << last.err;
  EXPECT_EQ(job_->result("moved"), expected);
  EXPECT_EQ(job_->curve("moved"), job_->curve("unmoved"));

  TrainingJob::ServedRun two = start("moved-two", 2, "bounded", 1, with_steps(12));
  (void)end(two);
  EXPECT_EQ(job_->train({"moved-two", 2, with_steps(16)}).exit_code, 0);
  TrainingJob::ServedRun four = start("moved-two", 4, "async", 1, with_steps(24));
  EXPECT_THAT(end(four), HasSubstr("96 updates"));
  EXPECT_EQ(job_->result("moved-two").step, 24);
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

TEST_F(StoreModesTest, RefusesWhatMakesNoSense) {
  const auto refusal = [](const Words& words) {
    Words command = {LOCKSTEP_PROGRAM};
    command.insert(command.end(), words.begin(), words.end());
    const ProcessResult result = run_process(command, {"LOCKSTEP_TOKEN_FILE=" + (job_->folder() / "token").string()});
    EXPECT_EQ(result.exit_code, 2);
    return result.err;
  };
  const std::string config = (job_->folder() / "job.yaml").string();
  EXPECT_THAT(refusal({"serve", "--workers", "1", "--mode", "slow"}), HasSubstr("slow"));
  EXPECT_THAT(refusal({"serve", "--workers", "1", "--state", "/tmp/nowhere"}),
              HasSubstr("--state: in mode sync servers hold nothing that could be kept"));
  EXPECT_EQ(refusal({"serve", "--workers", "1", "--mode", "bounded", "--wait", "5"}),
            "lockstep serve: --wait: in mode bounded nobody is waited for; expected with --mode sync only\n");
  EXPECT_EQ(refusal({"serve", "--workers", "1", "--mode", "async", "--min-workers", "1"}),
            "lockstep serve: --min-workers: in mode async nobody is waited for; expected with --mode sync only\n");
  EXPECT_EQ(
      refusal({"serve", "--workers", "1", "--threads", "2"}),
      "lockstep serve: --threads: in mode sync each part has a thread; expected with --mode bounded or async only\n");
  EXPECT_EQ(refusal({"serve", "--workers", "1", "--tls-cert", "", "--tls-key", "a.pem"}),
            "lockstep serve: --tls-cert: found no name, expected a PEM file\n");
  EXPECT_THAT(refusal({"train", config, "--set", "comm.mode=async"}),
              HasSubstr("comm.mode is async, which needs comm.backend server; found auto"));
  const Words served = {"train", config, "--set", "comm.backend=server", "--set", "comm.mode=bounded"};
  const auto with = [&](const std::string& setting) {
    Words words = served;
    words.insert(words.end(), {"--set", setting});
    return words;
  };
  EXPECT_THAT(refusal(with("comm.zero=1")), HasSubstr("expected comm.zero 0"));
  EXPECT_THAT(refusal(served), HasSubstr("comm.servers is empty"));
}

}  // namespace
}  // namespace lockstep
