// Training on GPUs as people run it, with emulated ones: the promise, what a steady step asks of a GPU, and what goes
// wrong with them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "tests/support/training_job.h"

namespace lockstep {
namespace {

using testing::HasSubstr;
using Settings = std::vector<std::string>;

Settings operator+(Settings a, const Settings& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

const Settings kShort = {"device.kind=cuda",      "model.dropout=0",          "train.steps=6",
                         "train.micro_batches=4", "train.micro_batch_size=1", "checkpoint.every_steps=3",
                         "evaluate.batches=1",    "evaluate.every_steps=2"};

class EmulatedGpusTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { job_ = new TrainingJob({LOCKSTEP_PROGRAM, LOCKSTEP_MPIRUN}); }
  static void TearDownTestSuite() {
    delete job_;
    job_ = nullptr;
  }

  static ProcessResult run(const std::string& name, int ranks, const Settings& settings,
                           const std::vector<std::string>& environment = {}) {
    return Process(job_->command({name, ranks, kShort + settings}), environment).wait();
  }
  static TrainingJob::Result train(const std::string& name, int ranks, const Settings& settings) {
    const ProcessResult result = run(name, ranks, settings);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return job_->result(name);
  }

  static TrainingJob* job_;
};
TrainingJob* EmulatedGpusTest::job_ = nullptr;

TEST_F(EmulatedGpusTest, GiveTheSameBitsInAnyNumberAndInGraphs) {
  const TrainingJob::Result one = train("one", 1, {});
  EXPECT_EQ(one.step, 6);
  EXPECT_EQ(train("two", 2, {}), one);
  EXPECT_EQ(train("four-sharded", 4, {"comm.zero=1"}), one);
  EXPECT_EQ(train("graph", 1, {"device.graph=true"}), one);
  EXPECT_EQ(train("two-graphs", 2, {"device.graph=true", "comm.zero=1", "train.recompute=block"}), one);
  EXPECT_EQ(train("shared", 2, {"device.share=true", "comm.backend=mpi"}), one);
  for (const char* run : {"two", "four-sharded", "graph", "two-graphs", "shared"}) {
    EXPECT_EQ(job_->curve(run), job_->curve("one")) << run;
  }
}

TEST_F(EmulatedGpusTest, TrainAdaptersInGraphs) {
  train("beneath", 1, {});
  const Settings lora = {"model.from=" + (job_->checkpoints("beneath") / "step-00000006").string(), "tune.method=lora",
                         "tune.rank=4", "tune.quantize=nf4"};
  EXPECT_EQ(train("lora-graphs", 2, lora + Settings{"device.graph=true"}), train("lora", 1, lora));
}

TEST_F(EmulatedGpusTest, GoOnInGraphsWhereAnyNumberOfThemStopped) {
  const Settings constant = {"schedule.name=constant", "train.precision=bf16"};
  EXPECT_EQ(train("resumed", 2, constant + Settings{"train.steps=3"}).step, 3);
  EXPECT_EQ(train("resumed", 1, constant + Settings{"device.graph=true"}), train("constant", 1, constant));
}

// A scale of the loss that falls and rises, which recordings hold.
TEST_F(EmulatedGpusTest, GiveTheSameBitsInFp16WithAndWithoutGraphs) {
  const Settings fp16 = {"train.precision=fp16", "train.loss_scale=134217728", "train.loss_scale_window=1",
                         "schedule.name=constant"};
  const TrainingJob::Result one = train("fp16", 1, fp16);
  EXPECT_EQ(train("fp16-graphs", 2, fp16 + Settings{"device.graph=true", "comm.zero=1"}), one);
  EXPECT_EQ(job_->curve("fp16-graphs"), job_->curve("fp16"));
}

// A T4 has no bf16; conversations of many lengths on two of them.
TEST_F(EmulatedGpusTest, TrainInFp16OnCardsWithoutBf16) {
  const std::vector<std::string> turing = {"LOCKSTEP_EMULATED_CAPABILITY=75"};
  const ProcessResult bf16 = run("turing-bf16", 1, {"train.precision=bf16"}, turing);
  if (bf16.err.find("or newer") != std::string::npos) {
    GTEST_SKIP() << "the kernels are compiled for newer cards only";
  }
  EXPECT_EQ(bf16.exit_code, 2);
  EXPECT_THAT(bf16.err, HasSubstr("Tesla T4 (emulated): compute capability 7.5 and no bf16; expected precision fp16 or "
                                  "fp32"));

  const Settings settings =
      job_->pack_conversations() + Settings{"train.precision=fp16", "data.packing=true", "model.family=llama",
                                            "model.context=64", "model.dropout=0.1"};
  const auto trained = [&](const std::string& name, int ranks) {
    const ProcessResult result = run(name, ranks, settings, turing);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return job_->result(name);
  };
  EXPECT_EQ(trained("turing-2", 2), trained("turing-1", 1));
  EXPECT_EQ(job_->curve("turing-2"), job_->curve("turing-1"));
}

// What the emulator reports at the end of a process.
struct Requests {
  unsigned long long launches = 0;
  unsigned long long graphs = 0;
  unsigned long long allocations = 0;
};
Requests requests_of(const ProcessResult& result) {
  Requests requests;
  const std::size_t at = result.err.find("cuda_emulator: ");
  if (result.exit_code != 0 || at == std::string::npos ||
      std::sscanf(result.err.c_str() + at, "cuda_emulator: %llu launches, %llu graphs, %llu allocations",
                  &requests.launches, &requests.graphs, &requests.allocations) != 3) {
    ADD_FAILURE() << result.err;
  }
  return requests;
}

TEST_F(EmulatedGpusTest, AreAskedForNoMemoryInASteadyStepAndForFewLaunchesWithGraphs) {
  const auto requests = [&](int steps, const std::string& graph) {
    const std::string name = "requests-" + std::to_string(steps) + graph;
    return requests_of(run(name, 1,
                           {"train.steps=" + std::to_string(steps), "device.graph=" + graph,
                            "checkpoint.every_steps=100", "evaluate.every_steps=100"},
                           {"LOCKSTEP_EMULATOR_REPORT=1"}));
  };
  const Requests four = requests(4, "false");
  const Requests five = requests(5, "false");
  EXPECT_EQ(five.allocations, four.allocations);
  EXPECT_EQ(four.graphs, 0U);
  const Requests four_in_graphs = requests(4, "true");
  const Requests five_in_graphs = requests(5, "true");
  EXPECT_EQ(five_in_graphs.allocations, four_in_graphs.allocations);
  EXPECT_EQ(five_in_graphs.graphs - four_in_graphs.graphs, 4U);  // one for each micro-batch
  EXPECT_LT(10 * (five_in_graphs.launches - four_in_graphs.launches), 2 * (five.launches - four.launches));
}

TEST_F(EmulatedGpusTest, SayWhyAStepIsNotPutIntoGraphs) {
  const ProcessResult result = run("dropped", 1, {"device.graph=true", "model.dropout=0.1", "train.steps=3"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.err, HasSubstr("train: device.graph: no step is put into CUDA graphs: dropout and noise are "
                                    "others in each step"));
}

// One of two breaks in the fifth step; the launcher starts the job again, which then has the bits of one that was left
// alone.
TEST_F(EmulatedGpusTest, LeaveTheLauncherACheckpointToGoOnFromWhenOneBreaks) {
  const TrainingJob::Result whole = train("whole", 2, {});
  const std::vector<std::string> train_command =
      job_->command({"broken", 2, kShort + Settings{"checkpoint.background=false"}});
  std::vector<std::string> launch = {LOCKSTEP_PROGRAM, "launch", "--ranks", "2"};
  launch.insert(launch.end(), train_command.begin() + 4, train_command.end());  // after mpirun.sh 2 lockstep train
  const ProcessResult result = Process(launch, {"LOCKSTEP_EMULATED_FAULT=600", "LOCKSTEP_EMULATED_FAULT_GPU=1",
                                                "LOCKSTEP_EMULATED_FAULT_ONCE=" + (job_->folder() / "broke").string()})
                                   .wait();
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_TRUE(std::filesystem::exists(job_->folder() / "broke"));
  EXPECT_THAT(result.err + result.out,
              HasSubstr("uncorrectable ECC error encountered on GPU 1 (NVIDIA H200 (emulated), PCI 0000:11:00.0); why, "
                        "`dmesg | grep Xid` on this host may tell"));
  EXPECT_EQ(job_->result("broken"), whole);
  EXPECT_EQ(job_->curve("broken"), job_->curve("whole"));
}

TEST_F(EmulatedGpusTest, SayHowMuchMemoryIsMissing) {
  const ProcessResult result =
      run("small", 1, {"train.micro_batch_size=64", "model.width=256"}, {"LOCKSTEP_EMULATED_GPU_MIB=150"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, testing::ContainsRegex(
                              "out of memory on GPU 0 .*: [0-9]+ MiB asked for, [0-9]+ of 150 MiB free; a smaller "
                              "train.micro_batch_size"));
}

TEST_F(EmulatedGpusTest, AreNotSharedUnlessAskedFor) {
  const ProcessResult result = run("many", 3, {}, {"LOCKSTEP_EMULATED_GPUS=2"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, HasSubstr("device.share"));
}

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) {
  setenv("LOCKSTEP_CUDA_LIBRARIES", LOCKSTEP_EMULATED_LIBRARIES, 1);
  setenv("LOCKSTEP_EMULATED_GPUS", "8", 1);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
