// lockstep bench as people run it, on a model small enough that only the shape of its answers counts.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "base/file.h"
#include "tests/data/small_dataset.h"
#include "tests/support/process.h"
#include "tests/support/temporary_folder.h"

namespace lockstep {
namespace {

using Json = nlohmann::json;

class BenchTest : public testing::Test {
 protected:
  BenchTest() {
    write_file_atomic(folder_ / "model.yaml",
                      "model: {family: gpt2, layers: 2, heads: 2, width: 32, context: 16}\n"
                      "data:  {train: none, sequence: 16}\n"
                      "train: {steps: 1, micro_batches: 4, micro_batch_size: 2, threads: 1}\n");
  }

  [[nodiscard]] ProcessResult bench(const std::string& what, const std::vector<std::string>& options, int ranks = 0,
                                    const char* rounds = "2") {
    std::vector<std::string> command;
    if (ranks > 0) {
      command = {LOCKSTEP_MPIRUN, std::to_string(ranks)};
    }
    command.insert(command.end(),
                   {LOCKSTEP_PROGRAM, "bench", what, (folder_ / "model.yaml").string(), "--rounds", rounds});
    command.insert(command.end(), options.begin(), options.end());
    return run_process(command);
  }

  // Of a run of the configuration's name in folder_ / "runs".
  [[nodiscard]] std::filesystem::path checkpoints() const { return folder_ / "runs" / "model" / "checkpoints"; }
  [[nodiscard]] std::vector<std::string> with_runs(std::vector<std::string> options) const {
    options.insert(options.end(), {"--set", "model.vocab=100", "--set", "run.dir=" + (folder_ / "runs").string()});
    return options;
  }

  TemporaryFolder folder_;
};

TEST_F(BenchTest, SaysHowFastAStepIsAndWhereItsTimeGoes) {
  for (const int ranks : {0, 2}) {
    const ProcessResult result = bench("step", {"--set", "model.vocab=100", "--json"}, ranks);
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const Json json = Json::parse(result.out);
    EXPECT_EQ(json.at("bench"), "step");
    EXPECT_EQ(json.at("world"), ranks == 0 ? 1 : ranks);
    EXPECT_EQ(json.at("vocab"), 100);
    EXPECT_GT(json.at("step_ms"), 0.0);
    EXPECT_NEAR(json.at("tokens_per_s").get<double>() * json.at("step_ms").get<double>(), 4 * 2 * 16 * 1000.0, 1e-6);
    EXPECT_GT(json.at("of_ceiling"), 0.0);
    EXPECT_GT(json.at("ceiling_gflop_per_s"), json.at("gflop_per_s")) << "so small a model cannot reach it";
    EXPECT_EQ(json.at("resident_bytes").size(), static_cast<std::size_t>(ranks == 0 ? 1 : ranks));
    double share = 0;
    std::vector<std::string> names;
    for (const Json& part : json.at("parts")) {
      names.push_back(part.at("name"));
      share += part.at("share").get<double>();
    }
    EXPECT_NEAR(share, 1, 1e-9);
    EXPECT_THAT(names, testing::ElementsAre("gemm", "attention", "norms and elementwise", "head and loss", "optimizer",
                                            "gradient sums", "exposed communication", "data", "other"));
  }
}

TEST_F(BenchTest, ReadsTheDataThatAConfigurationNames) {
  write_small_dataset(folder_ / "data", std::vector<std::uint32_t>(1000, 7), {1000}, 60);
  const ProcessResult result = bench("step", {"--set", "data.train=" + (folder_ / "data").string(), "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(Json::parse(result.out).at("vocab"), 60);
  const ProcessResult loader = bench("loader", {"--set", "data.train=" + (folder_ / "data").string(), "--json"}, 2);
  ASSERT_EQ(loader.exit_code, 0) << loader.err;
  const Json json = Json::parse(loader.out);
  EXPECT_NEAR(json.at("tokens_per_s").get<double>() * 2, json.at("mb_per_s").get<double>() * 1e6, 1)
      << "ids of 2 bytes";
  EXPECT_GT(json.at("of_ceiling"), 0.0);
  const ProcessResult no_data = bench("loader", {"--set", "model.vocab=60"});
  EXPECT_EQ(no_data.exit_code, 2);
  EXPECT_EQ(no_data.err, "lockstep bench: none is not a dataset; expected --set data.train=DIR\n");
}

TEST_F(BenchTest, MeasuresKernelsThatMemoryLimitsAndAttention) {
  const ProcessResult memory = bench("memory", {"--set", "model.vocab=100", "--device", "cpu", "--json"});
  ASSERT_EQ(memory.exit_code, 0) << memory.err;
  const Json json = Json::parse(memory.out);
  EXPECT_EQ(json.at("device"), "CPU");
  EXPECT_GT(json.at("ceiling_gb_per_s"), 0.0);
  EXPECT_EQ(json.at("kernels").size(), 8U);
  for (const Json& kernel : json.at("kernels")) {
    EXPECT_GT(kernel.at("gb_per_s"), 0.0) << kernel;
    EXPECT_GT(kernel.at("of_ceiling"), 0.0) << kernel;
  }
  const ProcessResult attention = bench("attention", {"--set", "model.vocab=100", "--device", "cpu", "--json"});
  ASSERT_EQ(attention.exit_code, 0) << attention.err;
  const Json passes = Json::parse(attention.out).at("passes");
  ASSERT_EQ(passes.size(), 2U);
  EXPECT_EQ(passes[0].at("pass"), "forward");
  EXPECT_EQ(passes[1].at("pass"), "gradient");
  EXPECT_GT(passes[1].at("gflop_per_s"), 0.0);
}

TEST_F(BenchTest, MeasuresEachProductOfAModel) {
  const ProcessResult result = bench("gemm", {"--set", "model.vocab=100", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const Json json = Json::parse(result.out);
  std::map<std::tuple<int, int, int, std::string>, int> calls;
  for (const Json& product : json.at("products")) {
    EXPECT_GT(product.at("of_ceiling"), 0.0);
    EXPECT_EQ(product.at("head"), product.at("m") == 100 || product.at("n") == 100 || product.at("k") == 100);
    calls[{product.at("m"), product.at("n"), product.at("k"), product.at("pass")}] += product.at("calls").get<int>();
  }
  // Four micro-batches of two layers over 32 rows: y = x w, dx = dy w^T, dw = x^T dy (or its transpose in the head).
  std::map<std::tuple<int, int, int, std::string>, int> expected;
  for (const auto& [in, out] : {std::pair{32, 96}, {32, 32}, {32, 128}, {128, 32}}) {
    expected[{32, out, in, "forward"}] = 8;
    expected[{32, in, out, "input gradient"}] = 8;
    expected[{in, out, 32, "weight gradient"}] = 8;
  }
  expected[{32, 100, 32, "forward"}] = 4;
  expected[{32, 32, 100, "input gradient"}] = 4;
  expected[{100, 32, 32, "weight gradient"}] = 4;
  EXPECT_EQ(calls, expected);
}

TEST_F(BenchTest, ComparesSumsWithTheLibrarysAndWithTheBareSum) {
  for (const int ranks : {2, 4}) {
    const ProcessResult result = run_process({LOCKSTEP_MPIRUN, std::to_string(ranks), LOCKSTEP_PROGRAM, "bench",
                                              "allreduce", "--max-mib", "1", "--rounds", "1", "--json"});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const Json json = Json::parse(result.out);
    EXPECT_EQ(json.at("world"), ranks);
    std::vector<int> sizes;
    for (const Json& row : json.at("sizes")) {
      sizes.push_back(row.at("bytes"));
      const double algbw = row.at("algbw_gb_per_s");
      EXPECT_NEAR(algbw * row.at("us").get<double>() * 1000, row.at("bytes").get<double>(), 1e-3);
      EXPECT_NEAR(row.at("busbw_gb_per_s").get<double>(), algbw * 2 * (ranks - 1) / ranks, 1e-9);
      EXPECT_GT(row.at("of_ceiling"), 0.0);
      EXPECT_GT(row.at("of_library"), 0.0);
    }
    EXPECT_EQ(sizes, (std::vector<int>{4096, 16384, 65536, 262144, 1048576}));
  }
  const ProcessResult alone = run_process({LOCKSTEP_PROGRAM, "bench", "allreduce"});
  EXPECT_EQ(alone.exit_code, 2);
  EXPECT_EQ(alone.err,
            "lockstep bench: one rank has nothing to sum with; expected mpirun -np 2 lockstep bench allreduce\n");
  for (const char* const option : {"--backend=nccl", "--share"}) {
    const ProcessResult refused = run_process({LOCKSTEP_PROGRAM, "bench", "allreduce", option});
    EXPECT_EQ(refused.exit_code, 2);
    EXPECT_EQ(refused.err, "lockstep bench: --backend nccl, --share: expected with --device cuda only\n");
  }
  EXPECT_EQ(run_process(
                {LOCKSTEP_PROGRAM, "bench", "allreduce", "--device", "cuda", "--backend", "server", "--servers", "a:1"})
                .err,
            "lockstep bench: --device cuda: expected without --backend server\n");
}

TEST_F(BenchTest, ComparesSumsThroughServersWithABareStream) {
  for (const char* wire : {"fp32", "int8"}) {
    const ProcessResult result =
        run_process({LOCKSTEP_PROGRAM, "bench", "allreduce", "--backend", "server", "--own-servers", "2", "--wire",
                     wire, "--max-mib", "1", "--rounds", "1", "--json"});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const Json json = Json::parse(result.out);
    EXPECT_EQ(json.at("world"), 2);
    EXPECT_THAT(json.at("path"), testing::StartsWith("server: 2 ranks, sums by 2 parameter servers"));
    EXPECT_EQ(json.at("sizes").size(), 5U);
    for (const Json& row : json.at("sizes")) {
      const double algbw = row.at("algbw_gb_per_s");
      EXPECT_NEAR(algbw * row.at("us").get<double>() * 1000, row.at("bytes").get<double>(), 1e-3);
      EXPECT_GT(row.at("of_ceiling"), 0.0);
      EXPECT_FALSE(row.contains("of_library"));
    }
  }
  const ProcessResult table = run_process({LOCKSTEP_PROGRAM, "bench", "allreduce", "--backend", "server", "--workers",
                                           "3", "--max-mib", "1", "--rounds", "1"});
  EXPECT_THAT(table.out, testing::StartsWith("allreduce: 3 ranks (server: 3 ranks, sums by 1 parameter server)"));
  EXPECT_THAT(table.out, testing::HasSubstr("bare stream  of ceiling\n      4096 "));
  const ProcessResult chosen = run_process({LOCKSTEP_PROGRAM, "bench", "allreduce", "--backend", "server", "--min-kib",
                                            "512", "--max-mib", "1", "--rounds", "1", "--tcp-only", "--json"});
  const Json sizes = Json::parse(chosen.out).at("sizes");
  EXPECT_EQ(sizes.size(), 2U);
  EXPECT_EQ(sizes.at(0).at("bytes"), 512 << 10);
  EXPECT_EQ(sizes.at(1).at("bytes"), 1 << 20);
  EXPECT_EQ(run_process({LOCKSTEP_PROGRAM, "bench", "allreduce", "--backend", "server", "--min-kib", "2048",
                         "--max-mib", "1", "--servers", "a:1"})
                .exit_code,
            2);
  const ProcessResult refused = run_process({LOCKSTEP_PROGRAM, "bench", "allreduce", "--servers", "a:1"});
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_EQ(refused.err, "lockstep bench: --servers: expected with --backend server only\n");
  EXPECT_EQ(run_process({LOCKSTEP_PROGRAM, "bench", "allreduce", "--backend", "server", "--tls-ca", "ca.pem"}).err,
            "lockstep bench: --tls-ca: expected with --servers only\n");
}

TEST_F(BenchTest, SaysWhatASaveCostsAndLeavesNothing) {
  // Weights and two moments of 29184 parameters in f32; the rest is headers, config.json and the like.
  constexpr double kStateBytes = 3 * 4 * 29184;
  for (const int ranks : {0, 2}) {
    const ProcessResult result = bench("checkpoint", with_runs({"--json"}), ranks, "1");
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const Json json = Json::parse(result.out);
    EXPECT_EQ(json.at("bench"), "checkpoint");
    EXPECT_EQ(json.at("world"), ranks == 0 ? 1 : ranks);
    EXPECT_EQ(json.at("background"), true);
    const double bytes = json.at("checkpoint_bytes");
    EXPECT_GT(bytes, kStateBytes);
    EXPECT_LT(bytes, kStateBytes + 20000);
    EXPECT_GT(json.at("step_ms"), 0.0);
    EXPECT_GT(json.at("copy_ms"), 0.0);
    const double step_ms = json.at("step_ms");
    // With one round the medians are its own.
    EXPECT_NEAR(json.at("exposed_of_100_steps"), json.at("exposed_ms").get<double>() / (100 * step_ms), 1e-9);
    EXPECT_NEAR(json.at("exposed_ms"), json.at("save_ms").get<double>() - json.at("save_steps").get<double>() * step_ms,
                1e-6);
    EXPECT_GE(json.at("save_steps"), 2.0) << "one in which all ranks' files are known to be there, one for rank 0";
    EXPECT_NEAR(json.at("mb_per_s").get<double>() * json.at("idle_ms").get<double>() * 1e3, bytes, 1);
    EXPECT_NEAR(json.at("of_ceiling"), json.at("mb_per_s").get<double>() / json.at("ceiling_mb_per_s").get<double>(),
                1e-9);
    EXPECT_FALSE(std::filesystem::exists(folder_ / "runs"));
  }
}

TEST_F(BenchTest, MeasuresSavesInTheForegroundAndInBf16) {
  const ProcessResult result = bench(
      "checkpoint", with_runs({"--set", "checkpoint.background=false", "--set", "train.precision=bf16", "--json"}), 2);
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const Json json = Json::parse(result.out);
  EXPECT_EQ(json.at("background"), false);
  EXPECT_EQ(json.at("precision"), "bf16");
  EXPECT_GT(json.at("checkpoint_bytes"), (2 + 3 * 4) * 29184) << "weights in bf16, their masters and two moments";
  EXPECT_FALSE(std::filesystem::exists(folder_ / "runs"));
}

TEST_F(BenchTest, WritesBesideTheCheckpointsOfARunAndTouchesNone) {
  std::filesystem::create_directories(checkpoints() / "step-00000007");
  write_file_atomic(checkpoints() / "step-00000007" / "manifest.json", "no manifest, and so not a good checkpoint");
  // As a benchmark leaves it that was killed.
  std::filesystem::create_directories(checkpoints() / "benchmark" / "step-00000900");
  write_file_atomic(checkpoints() / "benchmark" / "step-00000900" / "model.safetensors", "half of it");
  const ProcessResult result = bench("checkpoint", with_runs({}));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(read_file(checkpoints() / "step-00000007" / "manifest.json"), "no manifest, and so not a good checkpoint");
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(checkpoints())) {
    names.push_back(entry.path().filename().string());
  }
  EXPECT_THAT(names, testing::ElementsAre("step-00000007"));
}

TEST_F(BenchTest, RefusesAFolderThatItCannotHave) {
  write_file_atomic(folder_ / "runs", "");
  const ProcessResult file = bench("checkpoint", with_runs({}));
  EXPECT_EQ(file.exit_code, 2);
  EXPECT_EQ(file.err, "lockstep bench: " + (checkpoints() / "benchmark").string() +
                          " cannot be written: " + (folder_ / "runs").string() + " is not a folder\n");
  const ProcessResult ranks = bench("checkpoint", with_runs({}), 2);
  EXPECT_EQ(ranks.exit_code, 2);
  EXPECT_THAT(ranks.err, testing::HasSubstr(file.err));

  std::filesystem::remove(folder_ / "runs");
  std::filesystem::create_directories(checkpoints() / "benchmark");
  const File lock = File::open_or_create(checkpoints() / "benchmark" / ".lock");
  ASSERT_TRUE(lock.try_lock());
  const ProcessResult taken = bench("checkpoint", with_runs({}));
  EXPECT_EQ(taken.exit_code, 2);
  EXPECT_EQ(taken.err, "lockstep bench: another benchmark is writing to " + (checkpoints() / "benchmark").string() +
                           "; wait for it to end, or give this one another run.name\n");
  EXPECT_TRUE(std::filesystem::exists(lock.path()));
}

TEST_F(BenchTest, RemovesItsFilesWhenItIsStopped) {
  std::vector<std::string> command = {LOCKSTEP_PROGRAM, "bench", "checkpoint", (folder_ / "model.yaml").string(),
                                      "--rounds",       "10000"};
  const std::vector<std::string> options = with_runs({});
  command.insert(command.end(), options.begin(), options.end());
  Process process(command);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!std::filesystem::exists(checkpoints() / "benchmark") && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  process.send(SIGTERM);
  const ProcessResult result = process.wait();
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_EQ(result.err, "lockstep bench: stopped by a signal before all was measured\n");
  EXPECT_FALSE(std::filesystem::exists(folder_ / "runs"));
}

TEST_F(BenchTest, PrintsTablesForPeople) {
  const ProcessResult step = bench("step", {"--set", "model.vocab=100"});
  EXPECT_THAT(step.out, testing::StartsWith("step: 1 rank x 1 thread, 2 layers of width 32, 4 micro-batches of 2 x 16 "
                                            "tokens in fp32\n"));
  EXPECT_THAT(step.out, testing::HasSubstr("% of the ceiling"));
  const ProcessResult gemm = bench("gemm", {"--set", "model.vocab=100"});
  EXPECT_THAT(gemm.out, testing::HasSubstr("of ceiling\n    32     96     32  forward                 8 "));
  const ProcessResult checkpoint = bench("checkpoint", with_runs({}));
  EXPECT_THAT(checkpoint.out, testing::StartsWith("checkpoint: 1 rank x 1 thread, 2 layers of width 32, "));
  EXPECT_THAT(checkpoint.out, testing::HasSubstr("% of 100 steps of "));
  EXPECT_THAT(checkpoint.out, testing::HasSubstr(" KiB in " + checkpoints().string() + ": "));
  EXPECT_THAT(checkpoint.out, testing::HasSubstr("% of plain files, "));
}

TEST_F(BenchTest, RefusesWhatItCannotMeasure) {
  const ProcessResult no_vocabulary = bench("step", {});
  EXPECT_EQ(no_vocabulary.exit_code, 2);
  EXPECT_EQ(
      no_vocabulary.err,
      "lockstep bench: none is no dataset, so the size of the vocabulary is not known: --set model.vocab=50257\n");
  const ProcessResult no_kind = run_process({LOCKSTEP_PROGRAM, "bench"});
  EXPECT_EQ(no_kind.exit_code, 2);
  EXPECT_THAT(
      no_kind.err,
      testing::EndsWith(
          "lockstep bench: a command is missing: gemm, allreduce, loader, step, memory, attention, checkpoint\n"));
  const ProcessResult unknown = bench("stepp", {});
  EXPECT_EQ(unknown.exit_code, 2);
  EXPECT_EQ(unknown.err, "lockstep bench: stepp is not a command; did you mean step?\n");
}

}  // namespace
}  // namespace lockstep
