// comm.mode bounded and async: the bits of one worker, what several come to, and what is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/launcher/store_modes_fixture.h"

namespace lockstep {
namespace {

using testing::HasSubstr;

TEST_F(StoreModesTest, OneWorkerHasTheBitsOfARunWithoutServers) {
  for (const std::string precision : {"fp32", "bf16", "fp16"}) {
    // Of fp16: gradients overflow in the first step, and now and then.
    const Words settings = {"train.precision=" + precision, "train.loss_scale=134217728", "train.loss_scale_window=3"};
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
