// The promise of docs/determinism.md, held against the program as people run it: the same bits on any number of ranks,
// over each path between them, with any way of saving, stopped and resumed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <system_error>
#include <thread>

#include "tests/support/training_job.h"

namespace lockstep {
namespace {

using Settings = std::vector<std::string>;

class PromiseTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { job_ = new TrainingJob({LOCKSTEP_PROGRAM, LOCKSTEP_MPIRUN}); }
  static void TearDownTestSuite() {
    delete job_;
    job_ = nullptr;
  }

  // Trains run `name` to its end and returns where it got.
  static TrainingJob::Result train(const std::string& name, int ranks, const Settings& settings) {
    const ProcessResult result = job_->train({name, ranks, settings});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return job_->result(name);
  }

  // The same through parameter servers.
  static TrainingJob::Result train_through_servers(const std::string& name, int ranks, int servers,
                                                   const Settings& settings) {
    const TrainingJob::ServedRun run = job_->start_with_servers({name, ranks, settings}, servers);
    for (const auto* const processes : {&run.servers, &run.workers}) {
      for (const std::unique_ptr<Process>& process : *processes) {
        const ProcessResult result = process->wait();
        EXPECT_EQ(result.exit_code, 0) << result.err;
      }
    }
    return job_->result(name);
  }

  static TrainingJob* job_;
};
TrainingJob* PromiseTest::job_ = nullptr;

// Of the steps of a curve, in order.
std::vector<double> loss_scales(const std::vector<std::string>& curve) {
  std::vector<double> scales;
  for (const std::string& line : curve) {
    const auto json = nlohmann::json::parse(line);
    if (json.contains("loss_scale")) {
      scales.push_back(json.at("loss_scale").get<double>());
    }
  }
  return scales;
}

const Settings kLlama = {"model.family=llama", "model.heads=4", "model.kv_heads=2", "model.tied=false"};

Settings operator+(Settings a, const Settings& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

struct Case {
  const char* name;
  Settings settings;
};

class PromiseOfModelsTest : public PromiseTest, public testing::WithParamInterface<Case> {};

TEST_P(PromiseOfModelsTest, HoldsOnOneTwoFourAndEightRanks) {
  const Case& model = GetParam();
  const TrainingJob::Result one = train(std::string(model.name) + "-1", 1, model.settings);
  EXPECT_EQ(one.step, 24);
  const std::string first = std::string(model.name) + "-1";
  EXPECT_EQ(job_->curve(first).size(), 24U + 3U);  // steps and evaluations
  for (const int ranks : {2, 4, 8}) {
    SCOPED_TRACE(ranks);
    const std::string run = std::string(model.name) + "-" + std::to_string(ranks);
    EXPECT_EQ(train(run, ranks, model.settings), one);
    EXPECT_EQ(job_->results(run), job_->results(first));  // of steps 12, 18 and 24
    EXPECT_EQ(job_->curve(run), job_->curve(first));
  }
}

INSTANTIATE_TEST_SUITE_P(Models, PromiseOfModelsTest,
                         testing::Values(Case{"gpt2_fp32", {}}, Case{"gpt2_bf16", {"train.precision=bf16"}},
                                         Case{"llama_fp32", kLlama},
                                         Case{"llama_bf16", kLlama + Settings{"train.precision=bf16"}},
                                         Case{"qwen3_bf16", kLlama + Settings{"model.family=qwen3", "model.head_dim=16",
                                                                              "train.precision=bf16"}}),
                         [](const auto& instance) { return instance.param.name; });

TEST_F(PromiseTest, HoldsThroughParameterServers) {
  const TrainingJob::Result one = train("served-mpi", 2, {});
  EXPECT_EQ(one.step, 24);
  for (const auto& [ranks, servers] : {std::pair(1, 1), std::pair(2, 1), std::pair(4, 1), std::pair(4, 2)}) {
    SCOPED_TRACE(testing::Message() << ranks << " workers, " << servers << " servers");
    const std::string run = "served-" + std::to_string(ranks) + "-" + std::to_string(servers);
    EXPECT_EQ(train_through_servers(run, ranks, servers, {}), one);
    EXPECT_EQ(job_->results(run), job_->results("served-mpi"));
    EXPECT_EQ(job_->curve(run), job_->curve("served-mpi"));
  }
  EXPECT_EQ(train_through_servers("served-zero", 4, 2, {"comm.zero=1"}), one);
}

TEST_F(PromiseTest, HoldsAcrossMpiAndParameterServers) {
  const Settings settings = {"schedule.name=constant"};
  const TrainingJob::Result one = train("moved-mpi", 2, settings);
  EXPECT_EQ(train("moved", 4, settings + Settings{"train.steps=8"}).step, 8);
  EXPECT_EQ(train_through_servers("moved", 2, 2, settings + Settings{"train.steps=16"}).step, 16);
  EXPECT_EQ(train("moved", 1, settings), one);
  EXPECT_EQ(job_->curve("moved"), job_->curve("moved-mpi"));
}

// Rows of different lengths, of which different numbers of tokens are trained on; also when the run is interrupted.
TEST_F(PromiseTest, HoldsForConversations) {
  const Settings settings = job_->pack_conversations() + Settings{"model.family=qwen2", "model.context=64",
                                                                  "schedule.name=constant", "evaluate.every_steps=2"};
  const TrainingJob::Result one = train("chats-1", 1, settings);
  for (const int ranks : {2, 4, 8}) {
    const std::string run = "chats-" + std::to_string(ranks);
    EXPECT_EQ(train(run, ranks, settings), one);
    EXPECT_EQ(job_->curve(run), job_->curve("chats-1"));
  }
  EXPECT_EQ(train("chats-resumed", 4, settings + Settings{"train.steps=10"}).step, 10);
  EXPECT_EQ(train("chats-resumed", 2, settings), one);
  EXPECT_EQ(job_->curve("chats-resumed"), job_->curve("chats-1"));

  const Settings together = settings + Settings{"data.packing=true", "model.dropout=0.1", "train.embedding_noise=5"};
  const TrainingJob::Result together_one = train("chats-packed-1", 1, together);
  EXPECT_NE(together_one, one);
  EXPECT_EQ(train("chats-packed-4", 4, together + Settings{"train.recompute=attention"}), together_one);
  EXPECT_EQ(job_->curve("chats-packed-4"), job_->curve("chats-packed-1"));
}

// Parts of a model trained on what another run made.
TEST_F(PromiseTest, HoldsForAdaptersAndFrozenLayers) {
  train("beneath", 2, kLlama);
  const Settings from = kLlama + Settings{"model.from=" + (job_->checkpoints("beneath") / "step-00000024").string()};
  const Settings lora = from + Settings{"tune.method=lora",      "tune.rank=4",
                                        "tune.dropout=0.1",      "tune.also_train=lm_head,norm",
                                        "train.precision=bf16",  "schedule.name=constant",
                                        "evaluate.every_steps=2"};
  const TrainingJob::Result one = train("lora-1", 1, lora);
  for (const int ranks : {2, 4, 8}) {
    SCOPED_TRACE(ranks);
    const std::string run = "lora-" + std::to_string(ranks);
    EXPECT_EQ(train(run, ranks, lora), one);
    EXPECT_EQ(job_->results(run), job_->results("lora-1"));
    EXPECT_EQ(job_->curve(run), job_->curve("lora-1"));
  }
  EXPECT_EQ(train("lora-zero", 4, lora + Settings{"comm.zero=1", "comm.ranks_per_node=2"}), one);
  EXPECT_EQ(train("lora-recompute", 2, lora + Settings{"train.recompute=block"}), one);
  EXPECT_EQ(train("lora-resumed", 4, lora + Settings{"train.steps=10"}).step, 10);
  EXPECT_EQ(train("lora-resumed", 2, lora), one);
  EXPECT_EQ(job_->curve("lora-resumed"), job_->curve("lora-1"));

  for (const std::string packing : {"q8_0", "nf4"}) {
    const Settings quantized = lora + Settings{"tune.quantize=" + packing, "train.embedding_noise=5"};
    const TrainingJob::Result alone = train("lora-" + packing + "-1", 1, quantized);
    EXPECT_NE(alone, one);
    EXPECT_EQ(train("lora-" + packing + "-4", 4, quantized + Settings{"train.recompute=block"}), alone);
  }

  const Settings dora = lora + Settings{"tune.dora=true", "tune.quantize=q8_0"};
  const TrainingJob::Result turned = train("dora-1", 1, dora);
  EXPECT_NE(turned, one);
  EXPECT_EQ(train("dora-4", 4, dora + Settings{"train.recompute=block"}), turned);
  EXPECT_EQ(train("dora-resumed", 2, dora + Settings{"train.steps=10"}).step, 10);
  EXPECT_EQ(train("dora-resumed", 4, dora), turned);

  const Settings freeze = from + Settings{"tune.method=freeze", "tune.blocks=1"};
  const TrainingJob::Result frozen = train("freeze-1", 1, freeze);
  EXPECT_EQ(train("freeze-4", 4, freeze), frozen);
  EXPECT_EQ(train("freeze-zero", 2, freeze + Settings{"comm.zero=1"}), frozen);
}

// Pairs of answers, with adapters and without: then the reference is a copy of the model.
TEST_F(PromiseTest, HoldsForPreferences) {
  train("liked", 2, kLlama + Settings{"model.context=64"});
  std::ofstream file(job_->folder() / "pairs.jsonl");
  for (int i = 0; i < 60; ++i) {
    file << R"({"prompt": "count to )" << i % 7 << R"(", "chosen": ")" << std::string("1234567", i % 7 + 1)
         << R"(", "rejected": ")" << std::string("7654321", i % 5 + 1) << "\"}\n";
  }
  file.close();
  const std::filesystem::path pairs = job_->folder() / "pairs";
  const ProcessResult packed =
      run_process({LOCKSTEP_PROGRAM, "pack", "--format", "pairs", "--template", "default", "--tokenizer",
                   job_->checkpoints("liked") / "step-00000024", "--split", "0.8,0.2,0", "--max-tokens", "48", "--out",
                   pairs, job_->folder() / "pairs.jsonl"});
  ASSERT_EQ(packed.exit_code, 0) << packed.err;
  const Settings dpo = kLlama + Settings{"model.from=" + (job_->checkpoints("liked") / "step-00000024").string(),
                                         "data.train=" + (pairs / "train").string(),
                                         "data.valid=" + (pairs / "valid").string(),
                                         "model.context=64",
                                         "preference.sft=0.1",
                                         "schedule.name=constant",
                                         "evaluate.every_steps=2"};
  const Settings lora =
      dpo + Settings{"tune.method=lora", "tune.dropout=0.1", "tune.lora_plus=16", "data.packing=true"};
  for (const auto& [name, settings] : {std::pair{std::string("dpo"), dpo}, std::pair{std::string("dpo-lora"), lora}}) {
    SCOPED_TRACE(name);
    const TrainingJob::Result one = train(name + "-1", 1, settings);
    for (const int ranks : {2, 4, 8}) {
      const std::string run = name + "-" + std::to_string(ranks);
      EXPECT_EQ(train(run, ranks, settings), one);
      EXPECT_EQ(job_->curve(run), job_->curve(name + "-1"));
    }
    EXPECT_EQ(train(name + "-zero", 4, settings + Settings{"comm.zero=1", "train.recompute=block"}), one);
    EXPECT_EQ(train(name + "-resumed", 4, settings + Settings{"train.steps=10"}).step, 10);
    EXPECT_EQ(train(name + "-resumed", 2, settings), one);
    EXPECT_EQ(job_->curve(name + "-resumed"), job_->curve(name + "-1"));
  }
  const Settings overflowing = dpo + Settings{"train.precision=fp16", "train.loss_scale=134217728"};
  EXPECT_EQ(train("dpo-fp16-4", 4, overflowing), train("dpo-fp16-1", 1, overflowing));
  EXPECT_LT(loss_scales(job_->curve("dpo-fp16-1")).front(), 134217728.0);
}

TEST_F(PromiseTest, HoldsOverEveryPathBetweenRanks) {
  const TrainingJob::Result one = train("path-1", 1, {});
  EXPECT_EQ(train("path-self", 1, {"comm.backend=self"}), one);
  EXPECT_EQ(train("path-mpi", 1, {"comm.backend=mpi"}), one);
  EXPECT_EQ(train("path-nodes-of-1", 4, {"comm.ranks_per_node=1"}), one);
  EXPECT_EQ(train("path-nodes-of-2", 4, {"comm.ranks_per_node=2"}), one);
}

class PromiseOfShardsTest : public PromiseTest, public testing::WithParamInterface<const char*> {};

TEST_P(PromiseOfShardsTest, HoldsWithAShardedOptimizer) {
  const std::string precision = GetParam();
  const Settings settings = {"train.precision=" + precision, "comm.zero=1"};
  const TrainingJob::Result one = train("zero-" + precision + "-1", 1, {"train.precision=" + precision});
  for (const int ranks : {1, 2, 4, 8}) {
    SCOPED_TRACE(ranks);
    EXPECT_EQ(train("shards-" + precision + "-" + std::to_string(ranks), ranks, settings), one);
  }
  EXPECT_EQ(train("shards-" + precision + "-nodes-of-1", 4, settings + Settings{"comm.ranks_per_node=1"}), one);
  EXPECT_EQ(train("shards-" + precision + "-nodes-of-2", 4, settings + Settings{"comm.ranks_per_node=2"}), one);
}

INSTANTIATE_TEST_SUITE_P(Precisions, PromiseOfShardsTest, testing::Values("fp32", "bf16"),
                         [](const auto& instance) { return std::string(instance.param); });

TEST_F(PromiseTest, ShardsTheOptimizerOnAnyNumberOfRanks) {
  const Settings fixed = {"train.determinism=fixed", "train.micro_batches=6"};
  EXPECT_EQ(train("three-shards", 3, fixed + Settings{"comm.zero=1"}), train("three-ranks", 3, fixed));
}

// With a scale that is too high at first, and one that rises every few steps to where gradients overflow again.
TEST_F(PromiseTest, HoldsInFp16) {
  const Settings settings =
      kLlama + Settings{"train.precision=fp16", "train.loss_scale=134217728", "train.loss_scale_window=3",
                        "schedule.name=constant", "evaluate.every_steps=2"};
  const TrainingJob::Result one = train("fp16-1", 1, settings);
  const std::vector<double> scales = loss_scales(job_->curve("fp16-1"));
  ASSERT_EQ(scales.size(), 24U);
  EXPECT_LT(scales.front(), 134217728.0);
  EXPECT_FALSE(std::ranges::is_sorted(scales));                          // it fell
  EXPECT_FALSE(std::ranges::is_sorted(scales, std::ranges::greater()));  // and rose
  for (const int ranks : {2, 4, 8}) {
    SCOPED_TRACE(ranks);
    const std::string run = "fp16-" + std::to_string(ranks);
    EXPECT_EQ(train(run, ranks, settings), one);
    EXPECT_EQ(job_->results(run), job_->results("fp16-1"));
    EXPECT_EQ(job_->curve(run), job_->curve("fp16-1"));
  }
  EXPECT_EQ(train("fp16-zero", 4, settings + Settings{"comm.zero=1", "train.recompute=block"}), one);
  EXPECT_EQ(train_through_servers("fp16-served", 2, 1, settings), one);
  EXPECT_EQ(train("fp16-resumed", 4, settings + Settings{"train.steps=10"}).step, 10);
  EXPECT_EQ(train("fp16-resumed", 2, settings + Settings{"comm.zero=1", "train.steps=16"}).step, 16);
  EXPECT_EQ(train("fp16-resumed", 1, settings), one);
  EXPECT_EQ(job_->curve("fp16-resumed"), job_->curve("fp16-1"));

  const Settings gpt2 = {"train.precision=fp16", "train.loss_scale=134217728", "model.dropout=0.1",
                         "train.embedding_noise=5"};
  EXPECT_EQ(train("fp16-gpt2-4", 4, gpt2), train("fp16-gpt2-1", 1, gpt2));
  EXPECT_LT(loss_scales(job_->curve("fp16-gpt2-1")).front(), 134217728.0);
}

TEST_F(PromiseTest, HoldsWhateverIsRecomputed) {
  const Settings settings = {"train.precision=bf16", "model.dropout=0.1"};
  const TrainingJob::Result kept = train("recompute-none", 1, settings);
  EXPECT_EQ(train("recompute-attention", 2, settings + Settings{"train.recompute=attention"}), kept);
  EXPECT_EQ(train("recompute-block", 4, settings + Settings{"train.recompute=block", "comm.zero=1"}), kept);
}

TEST_F(PromiseTest, HoldsOnAnyNumberOfThreads) {
  EXPECT_EQ(train("threads-3", 1, {"train.threads=3"}), train("threads-1", 1, {"train.threads=1"}));
}

// As on processors with less than this one has: bf16 is emulated there.
TEST_F(PromiseTest, HoldsWithoutAvx512) {
  ASSERT_EQ(::setenv("ONEDNN_MAX_CPU_ISA", "AVX2", 1), 0);
  for (const std::string precision : {"fp32", "bf16"}) {
    const Settings settings = {"train.precision=" + precision};
    EXPECT_EQ(train("avx2-4-" + precision, 4, settings), train("avx2-1-" + precision, 1, settings));
  }
  ASSERT_EQ(::unsetenv("ONEDNN_MAX_CPU_ISA"), 0);
}

TEST_F(PromiseTest, HoldsWithSavesInTheForegroundAndWithout) {
  const TrainingJob::Result background = train("background", 2, {"checkpoint.every_steps=2"});
  EXPECT_EQ(train("foreground", 2, {"checkpoint.every_steps=2", "checkpoint.background=false"}), background);
  EXPECT_EQ(train("only-at-the-end", 2, {"checkpoint.every_steps=0"}), background);
}

// The last of them, by its name; 0 without.
int newest_checkpoint(const std::filesystem::path& folder) {
  int newest = 0;
  std::error_code none_yet;
  for (const auto& entry : std::filesystem::directory_iterator(folder, none_yet)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("step-") && name.find('.') == std::string::npos) {
      newest = std::max(newest, std::stoi(name.substr(5)));
    }
  }
  return newest;
}

TEST_F(PromiseTest, HoldsWhenStoppedBySignalsAndResumedOnOtherRankCounts) {
  const TrainingJob::Result whole = train("whole", 2, {"train.steps=400"});
  int stops = 0;
  for (int attempt = 0;; ++attempt) {
    ASSERT_LT(attempt, 20);
    const int before = newest_checkpoint(job_->checkpoints("stopped"));
    const std::string zero = "comm.zero=" + std::to_string(attempt % 2);
    Process process(job_->command({"stopped", 1 << (attempt % 4), {"train.steps=400", zero}}));
    while (process.is_running() && newest_checkpoint(job_->checkpoints("stopped")) < before + 40) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    process.send(SIGTERM);
    const ProcessResult result = process.wait();
    if (result.exit_code == 0) {
      break;
    }
    // mpirun itself ends with an exit code of its own when it was told to stop its ranks.
    stops += job_->result("stopped").step > 0 ? 1 : 0;
  }
  EXPECT_EQ(job_->result("stopped"), whole);
  EXPECT_EQ(job_->curve("stopped"), job_->curve("whole"));
  EXPECT_GE(stops, 1);
}

struct Reading {
  std::uint64_t sample;
  std::string hash;
};

// What the ranks read last for each place in the run: lines of "step micro_batch sample hash", rows in order.
std::map<std::pair<int, int>, std::vector<Reading>> readings_of(const std::filesystem::path& folder,
                                                                const std::string& prefix) {
  std::map<std::pair<int, int>, std::vector<Reading>> readings;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (!entry.path().filename().string().starts_with(prefix)) {
      continue;
    }
    std::ifstream file(entry.path());
    std::map<std::pair<int, int>, std::vector<Reading>> of_file;
    std::pair<int, int> place;
    std::pair<int, int> previous{-1, -1};
    Reading reading;
    while (file >> place.first >> place.second >> reading.sample >> reading.hash) {
      if (place != previous) {
        of_file[place].clear();  // read again after a resume
      }
      of_file[place].push_back(reading);
      previous = place;
    }
    for (auto& [at, rows] : of_file) {
      readings[at] = rows;
    }
  }
  return readings;
}

TEST_F(PromiseTest, ReadsEverySampleOfAnEpochExactlyOnceOnChangingRankCounts) {
  // 16 samples a step; the text has between 3 and 4 thousand samples, so this is an epoch and a half.
  const std::string trace = job_->folder() / "trace";
  std::uint64_t samples = 0;
  {
    std::ifstream info(job_->folder() / "data" / "train" / "dataset.json");
    const std::string text((std::istreambuf_iterator<char>(info)), {});
    const std::size_t at = text.find("\"tokens\":");
    ASSERT_NE(at, std::string::npos);
    samples = (std::stoull(text.substr(at + 9)) - 1) / 32;
  }
  const int steps = static_cast<int>(samples * 3 / 2 / 16);
  for (const auto& [ranks, until] : std::vector<std::pair<int, int>>{{2, steps / 3}, {4, steps / 2}, {1, steps}}) {
    const ProcessResult result =
        job_->train({"trace",
                     ranks,
                     {"data.trace=" + trace, "train.steps=" + std::to_string(until), "schedule.name=constant",
                      "data.valid=", "evaluate.every_steps=0", "model.layers=1"}});
    ASSERT_EQ(result.exit_code, 0) << result.err;
  }

  std::vector<std::uint64_t> order;
  std::map<std::uint64_t, std::string> hashes;
  const auto readings = readings_of(job_->folder(), "trace");
  ASSERT_EQ(readings.size(), static_cast<std::size_t>(steps) * 8);
  for (const auto& [place, rows] : readings) {
    ASSERT_EQ(rows.size(), 2U) << place.first << " " << place.second;
    for (const Reading& row : rows) {
      order.push_back(row.sample);
      const auto [known, fresh] = hashes.emplace(row.sample, row.hash);
      EXPECT_EQ(known->second, row.hash) << "sample " << row.sample << " was read with other contents";
    }
  }
  const std::set<std::uint64_t> epoch(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(samples));
  EXPECT_EQ(epoch.size(), samples);
  EXPECT_EQ(*epoch.rbegin(), samples - 1);
  const std::set<std::uint64_t> next(order.begin() + static_cast<std::ptrdiff_t>(samples), order.end());
  EXPECT_EQ(next.size(), order.size() - samples);
}

}  // namespace
}  // namespace lockstep
