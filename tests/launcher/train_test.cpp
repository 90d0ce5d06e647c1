// lockstep train as people run it: what it refuses and leaves alone, how it stops, goes on, and copes with full disks
// and damaged checkpoints.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "base/file.h"
#include "tests/support/training_job.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;
using Words = std::vector<std::string>;

// Every file below `folder` with its contents.
std::map<std::string, std::string> contents_of(const fs::path& folder) {
  std::map<std::string, std::string> contents;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) {
      contents[fs::relative(entry.path(), folder)] = read_file(entry.path());
    }
  }
  return contents;
}

class TrainTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { job_ = new TrainingJob({LOCKSTEP_PROGRAM, LOCKSTEP_MPIRUN}); }
  static void TearDownTestSuite() {
    delete job_;
    job_ = nullptr;
  }

  // The command without mpirun: one rank.
  static Words alone(const std::string& run, const Words& settings = {}, const Words& options = {}) {
    Words words = job_->command({run, 1, settings, options});
    words.erase(words.begin(), words.begin() + 2);
    return words;
  }
  static ProcessResult train(const std::string& run, const Words& settings = {}, const Words& options = {}) {
    return run_process(alone(run, settings, options));
  }
  static fs::path folder_of(const std::string& run) { return job_->folder() / "runs" / run; }

  static std::vector<int> steps_in_metrics(const std::string& run) {
    std::vector<int> steps;
    std::istringstream lines(read_file(folder_of(run) / "metrics.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      const auto json = nlohmann::json::parse(line);
      if (json.contains("loss")) {
        steps.push_back(json.at("step").get<int>());
      }
    }
    return steps;
  }
  static std::vector<int> steps_up_to(int last) {
    std::vector<int> steps(static_cast<std::size_t>(last));
    for (int i = 0; i < last; ++i) {
      steps[static_cast<std::size_t>(i)] = i + 1;
    }
    return steps;
  }
  // Waits until the run has done `step` steps.
  static void wait_for_step(Process& process, const std::string& run, int step) {
    for (int i = 0; i < 3000 && process.is_running(); ++i) {
      if (fs::exists(folder_of(run) / "metrics.jsonl") &&
          std::ranges::count(read_file(folder_of(run) / "metrics.jsonl"), '\n') >= step) {
        return;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    ADD_FAILURE() << "step " << step << " was not reached: " << process.err();
  }
  // A copy of the training dataset in which one file has other contents.
  static std::string dataset_with(const std::string& name, const std::string& file,
                                  const std::function<std::string(std::string)>& change) {
    const fs::path folder = job_->folder() / name;
    fs::remove_all(folder);
    fs::copy(job_->folder() / "data" / "train", folder, fs::copy_options::recursive);
    const std::string changed = change(read_file(folder / file));
    std::ofstream(folder / file, std::ios::binary | std::ios::trunc) << changed;
    return "data.train=" + folder.string();
  }

  static TrainingJob* job_;
};
TrainingJob* TrainTest::job_ = nullptr;

void expect_refusal(const ProcessResult& result, const std::string& message) {
  EXPECT_EQ(result.exit_code, 2) << result.err;
  EXPECT_THAT(result.err, StartsWith("lockstep train: "));
  EXPECT_THAT(result.err, HasSubstr(message));
  EXPECT_EQ(std::ranges::count(result.err, '\n'), 1) << result.err;
}

TEST_F(TrainTest, RefusesBadInputInOneLineAndLeavesNothing) {
  ASSERT_EQ(run_process({LOCKSTEP_PROGRAM, "pack", "--format", "text", "--tokenizer", "bpe:300", "--split", "1,0,0",
                         "--out", job_->folder() / "other", job_->folder() / "text.txt"})
                .exit_code,
            0);
  std::ofstream(job_->folder() / "file") << "x";
  const auto cut = [](const std::string& text) { return text.substr(0, text.size() / 2); };
  const auto foreign = [](const std::string&) { return std::string("this is no HDF5 file"); };
  const std::string folder = job_->folder();
  const std::vector<std::pair<Words, std::string>> cases = {
      {{"model.layer=3"}, "did you mean model.layers?"},
      {{"train.precision=fp8"}, "expected"},
      {{"optimizer.lr=-1"}, "optimizer.lr is -1"},
      {{"train.micro_batches=6"}, "needs a power of two"},
      {{"data.sequence=100000", "model.context=100000"}, "a sample of data.sequence 100000 needs 100001"},
      {{"data.valid=" + folder + "/other/train"}, "pack both with the same"},
      {{"data.train=" + folder + "/none"}, "none"},
      {{dataset_with("cut", "00000.h5", cut)}, "00000.h5"},
      {{dataset_with("foreign", "00000.h5", foreign)}, "00000.h5"},
      {{dataset_with("garbage", "dataset.json", foreign)}, "dataset.json"},
      {{"model.vocab=100"}, "the data's tokenizer has 257 tokens"},
      {{"model.from=" + folder + "/data"}, "no config.json"},
      {{"run.dir=" + folder + "/file"}, "cannot be written"},
      {{"run.dir=/proc/1"}, "cannot be written"},
  };
  for (const auto& [settings, message] : cases) {
    SCOPED_TRACE(settings.front());
    expect_refusal(train("refused", settings), message);
    EXPECT_FALSE(fs::exists(folder_of("refused")));
  }
  expect_refusal(train("refused", {}, {"--resume", folder + "/none"}), "no such folder");
  EXPECT_FALSE(fs::exists(folder_of("refused")));
}

TEST_F(TrainTest, RefusesRankCountsThatTheTreeCannotServe) {
  const ProcessResult three = job_->train({"ranks", 3});
  EXPECT_EQ(three.exit_code, 2);
  EXPECT_THAT(three.err, HasSubstr("the job has 3 ranks; determinism: elastic needs a power of two"));
  const ProcessResult four = job_->train({"ranks", 4, {"train.micro_batches=2"}});
  EXPECT_EQ(four.exit_code, 2);
  EXPECT_THAT(four.err, HasSubstr("the job has 4 ranks, but a step has 2 micro-batches"));
  EXPECT_FALSE(fs::exists(folder_of("ranks")));
}

TEST_F(TrainTest, SaysOnceWhatAllRanksRefuse) {
  for (int attempt = 0; attempt < 4; ++attempt) {
    const ProcessResult result = job_->train({"once", 4, {"data.train=" + (job_->folder() / "none").string()}});
    EXPECT_EQ(result.exit_code, 2);
    std::size_t count = 0;
    for (std::size_t at = result.err.find("lockstep train: "); at != std::string::npos;
         at = result.err.find("lockstep train: ", at + 1)) {
      ++count;
    }
    EXPECT_EQ(count, 1U) << result.err;
    EXPECT_THAT(result.err, HasSubstr("none"));
  }
}

// As on hosts of which one has a stale copy.
TEST_F(TrainTest, RanksThatDisagreeAboutTheJobAreRefused) {
  const auto disagree = [](const std::string& run, const Words& of_both, const Words& of_first,
                           const Words& of_second) {
    const auto settings = [&](const Words& own) {
      Words all = of_both;
      all.insert(all.end(), own.begin(), own.end());
      return all;
    };
    Words words = job_->command({run, 1, settings(of_first)});
    words.insert(words.end(), {":", "-np", "1"});
    const Words second = alone(run, settings(of_second));
    words.insert(words.end(), second.begin(), second.end());
    return run_process(words);
  };
  const auto expect = [&](const Words& of_second, const std::string& message) {
    const ProcessResult result = disagree("split", {}, {}, of_second);
    EXPECT_EQ(result.exit_code, 2) << result.err;
    EXPECT_THAT(result.err, HasSubstr("lockstep train: " + message));
    EXPECT_FALSE(fs::exists(folder_of("split")));
  };
  expect({"optimizer.lr=0.002"},
         "optimizer.lr is 0.002 on rank 1, and 0.001 on rank 0; expected the same on every rank\n");
  expect({"run.seed=7"}, "run.seed is 7 on rank 1, and ");
  expect({"run.name=other"}, "run.name is other on rank 1, and split on rank 0;");
  expect({"data.train=" + (job_->folder() / "data" / "valid").string()}, "the content of data.train is ");

  ASSERT_EQ(train("one", {"train.steps=2"}).exit_code, 0);
  ASSERT_EQ(train("another", {"train.steps=2", "run.seed=2"}).exit_code, 0);
  const auto from = [](const std::string& run) {
    return Words{"model.from=" + (job_->checkpoints(run) / "step-00000002").string()};
  };
  EXPECT_THAT(disagree("from", {}, from("one"), from("another")).err, HasSubstr("the model in model.from is "));
  EXPECT_THAT(disagree("from", {"tune.method=lora"}, from("one"), from("another")).err,
              HasSubstr("the model in model.from is "));

  // What a rank may have for itself, and the same model elsewhere.
  fs::copy(job_->checkpoints("one") / "step-00000002", job_->folder() / "copy-of-one");
  Words other_place = {"model.from=" + (job_->folder() / "copy-of-one").string(), "train.threads=1",
                       "data.read_ahead=3", "comm.timeout_s=50"};
  const ProcessResult result = disagree("from", {"train.steps=3"}, from("one"), other_place);
  EXPECT_EQ(result.exit_code, 0) << result.err;
}

TEST_F(TrainTest, AResumeThatDoesNotFitChangesNothing) {
  ASSERT_EQ(train("fixed", {"train.steps=12"}).exit_code, 0);
  const auto before = contents_of(folder_of("fixed"));
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"model.width=64", "model.width = 32, the configuration says 64"},
      {"model.layers=3", "model.layers = 2"},
      {"run.seed=7", "run.seed"},
      {"train.micro_batches=4", "train.micro_batches = 8"},
      {"train.micro_batch_size=1", "train.micro_batch_size = 2"},
      {"train.precision=bf16", "train.precision = fp32"},
      {"train.determinism=fixed", "train.determinism = elastic"},
      {"data.train=" + (job_->folder() / "data" / "valid").string(), "does not hold the data"},
  };
  for (const auto& [setting, message] : cases) {
    SCOPED_TRACE(setting);
    expect_refusal(train("fixed", {setting}), message);
    EXPECT_EQ(contents_of(folder_of("fixed")), before);
  }
}

TEST_F(TrainTest, PrintsItsConfigurationOnceAndPlainLinesWithoutATerminal) {
  const ProcessResult result = job_->train({"lines", 2});
  EXPECT_EQ(result.exit_code, 0);
  const std::string all = result.out + result.err;
  EXPECT_THAT(all, HasSubstr("  width: 32\n"));
  EXPECT_EQ(all.find("\nconfiguration:"), all.rfind("\nconfiguration:"));
  EXPECT_THAT(all, HasSubstr("train: step 24 of 24 (100%), loss "));
  EXPECT_EQ(all.find('\r'), std::string::npos);
}

TEST_F(TrainTest, TheFirstSignalSavesTheStepInProgressAndTheSameCommandGoesOn) {
  const Words settings = {"train.steps=120", "checkpoint.every_steps=0", "data.valid=", "evaluate.every_steps=0"};
  ASSERT_EQ(train("undisturbed", settings).exit_code, 0);
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) {
    const std::string run = "signal-" + std::to_string(signal);
    Process process(alone(run, settings));
    wait_for_step(process, run, 5);
    process.send(signal);
    EXPECT_EQ(process.wait().exit_code, 75);
    const int stopped_at = job_->result(run).step;
    EXPECT_EQ(steps_in_metrics(run), steps_up_to(stopped_at));
    EXPECT_LT(stopped_at, 120);
    ASSERT_EQ(train(run, settings).exit_code, 0);
    EXPECT_EQ(job_->result(run), job_->result("undisturbed"));
    EXPECT_EQ(steps_in_metrics(run), steps_up_to(120));
  }
}

// Each step of this run is followed by an evaluation that takes far longer, so that is where the signal falls.
// The evaluation is given up, so that the save comes in time, and made up for when the run goes on.
TEST_F(TrainTest, ASignalDuringAnEvaluationSavesToo) {
  const Words settings = {"evaluate.every_steps=1", "evaluate.batches=500", "train.steps=7", "evaluate.patience=3"};
  ASSERT_EQ(train("evaluated", settings).exit_code, 0);
  int stops = 0;
  for (int step = 2; step <= 6; step += 2) {
    Process process(alone("evaluating", settings));
    wait_for_step(process, "evaluating", 2 * step - 1);  // lines: the step's is there, its evaluation's is not
    process.send(SIGTERM);
    const ProcessResult result = process.wait();
    stops += result.exit_code == 75 ? 1 : 0;
    EXPECT_EQ(steps_in_metrics("evaluating"), steps_up_to(job_->result("evaluating").step));
  }
  EXPECT_EQ(stops, 3);
  EXPECT_EQ(train("evaluating", settings).exit_code, 0);
  EXPECT_EQ(job_->result("evaluating"), job_->result("evaluated"));
  EXPECT_EQ(job_->curve("evaluating"), job_->curve("evaluated"));
}

TEST_F(TrainTest, ASecondSignalEndsTheProcessAtOnce) {
  Process process(alone("twice", {"model.width=512", "model.layers=8", "train.micro_batch_size=64",
                                  "train.micro_batches=64", "train.threads=1"}));
  for (int i = 0; i < 4000 && process.err().find("parameters") == std::string::npos; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  process.send(SIGINT);
  std::this_thread::sleep_for(std::chrono::milliseconds(700));
  process.send(SIGINT);
  EXPECT_EQ(process.wait(5).signal, SIGINT);
}

TEST_F(TrainTest, StopsEarlyRemembersItAndGoesOnWithMorePatience) {
  const Words settings = {"evaluate.every_steps=4", "evaluate.min_delta=100"};
  const auto with = [&](const std::string& patience) {
    Words words = settings;
    words.push_back("evaluate.patience=" + patience);
    return words;
  };
  const ProcessResult first = train("patience", with("2"));
  EXPECT_EQ(first.exit_code, 0);
  EXPECT_THAT(first.out + first.err, HasSubstr("stopping early at step 12: 2 evaluations without a better"));
  EXPECT_EQ(job_->result("patience").step, 12);
  const ProcessResult again = train("patience", with("2"));
  EXPECT_THAT(again.out + again.err, HasSubstr("stopped early at step 12 already"));
  EXPECT_EQ(train("patience", with("3")).exit_code, 0);
  EXPECT_EQ(steps_in_metrics("patience"), steps_up_to(16));
  ASSERT_EQ(train("patient", {"evaluate.every_steps=4"}).exit_code, 0);
  ASSERT_EQ(train("patience", with("0")).exit_code, 0);
  EXPECT_EQ(job_->result("patience"), job_->result("patient"));
}

TEST_F(TrainTest, UsesTheCheckpointBeforeADamagedOneAndSaysSo) {
  ASSERT_EQ(train("damaged").exit_code, 0);
  const TrainingJob::Result whole = job_->result("damaged");
  const std::string model = "model.safetensors";
  const auto damage = [&](const fs::path& file, const std::function<void(std::string&)>& change) {
    std::string text = read_file(file);
    change(text);
    std::ofstream(file, std::ios::binary | std::ios::trunc) << text;
  };
  const std::vector<std::pair<const char*, std::function<void(const fs::path&)>>> damages = {
      {"was altered", [&](const fs::path& c) { damage(c / model, [](auto& t) { t[t.size() / 2] ^= 1; }); }},
      {"bytes, expected", [&](const fs::path& c) { damage(c / model, [](auto& t) { t.resize(t.size() - 1); }); }},
      {"is missing", [&](const fs::path& c) { fs::remove(c / "state-00000-of-00001.safetensors"); }},
      {"manifest.json", [&](const fs::path& c) { damage(c / "manifest.json", [](auto& t) { t.resize(100); }); }},
  };
  for (const auto& [reason, harm] : damages) {
    SCOPED_TRACE(reason);
    harm(job_->checkpoints("damaged") / "step-00000024");
    const ProcessResult result = train("damaged");
    EXPECT_EQ(result.exit_code, 0);
    EXPECT_THAT(result.err, HasSubstr("step-00000024 is damaged and not used: "));
    EXPECT_THAT(result.err, HasSubstr(reason));
    EXPECT_THAT(result.out + result.err, HasSubstr("from step 18"));
    EXPECT_EQ(job_->result("damaged"), whole);
    EXPECT_EQ(steps_in_metrics("damaged"), steps_up_to(24));
  }
  for (const auto& entry : fs::directory_iterator(job_->checkpoints("damaged"))) {
    damage(entry.path() / model, [](auto& t) { t[t.size() / 2] ^= 1; });
  }
  const auto before = contents_of(folder_of("damaged"));
  const ProcessResult result = train("damaged");
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, HasSubstr("checkpoints is intact"));
  EXPECT_EQ(contents_of(folder_of("damaged")), before);
}

TEST_F(TrainTest, ResumesFromAnOlderCheckpointOrNoneWhenTold) {
  ASSERT_EQ(train("told").exit_code, 0);
  const TrainingJob::Result whole = job_->result("told");
  const ProcessResult older = train("told", {}, {"--resume", job_->checkpoints("told") / "step-00000012"});
  EXPECT_EQ(older.exit_code, 0);
  EXPECT_THAT(older.out + older.err, HasSubstr("from step 12"));
  EXPECT_EQ(job_->result("told"), whole);
  EXPECT_EQ(train("told", {}, {"--resume", "none"}).exit_code, 0);
  EXPECT_EQ(job_->result("told"), whole);
  EXPECT_EQ(steps_in_metrics("told"), steps_up_to(24));

  ASSERT_EQ(train("another", {}, {"--resume", job_->checkpoints("told") / "step-00000012"}).exit_code, 0);
  EXPECT_EQ(job_->result("another"), whole);
  expect_refusal(train("another", {}, {"--resume", job_->checkpoints("told") / "step-00000012"}),
                 "has checkpoints of its own");
}

TEST_F(TrainTest, StartsFromTheWeightsOfAnotherRunAndNeedsThemOnlyOnce) {
  ASSERT_EQ(train("base").exit_code, 0);
  const std::string from = "model.from=" + (job_->checkpoints("base") / "step-00000024").string();
  ASSERT_EQ(train("tuned-whole", {from}).exit_code, 0);
  ASSERT_EQ(train("tuned", {from, "train.steps=12", "schedule.name=constant"}).exit_code, 0);
  fs::remove_all(folder_of("base"));
  EXPECT_EQ(train("tuned", {from, "train.steps=18", "schedule.name=constant"}).exit_code, 0);
  EXPECT_EQ(job_->result("tuned").step, 18);
}

TEST_F(TrainTest, AdaptersStayWithTheModelThatTheyWereTrainedOn) {
  ASSERT_EQ(train("beneath").exit_code, 0);
  ASSERT_EQ(train("elsewhere", {"run.seed=2"}).exit_code, 0);
  const fs::path base = job_->folder() / "base-model";
  fs::copy(job_->checkpoints("beneath") / "step-00000024", base);
  const Words lora = {"model.from=" + base.string(), "tune.method=lora", "schedule.name=constant"};
  const auto with = [&](const Words& more) {
    Words all = lora;
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  EXPECT_THAT(train("adapters", with({"tune.targets=q_proj"})).err,
              HasSubstr("tune.targets: no layer of this gpt2 is called q_proj; expected c_attn, "));
  const ProcessResult first = train("adapters", with({"train.steps=12"}));
  ASSERT_EQ(first.exit_code, 0) << first.err;
  EXPECT_FALSE(fs::exists(job_->checkpoints("adapters") / "step-00000012" / "model.safetensors"));
  EXPECT_TRUE(fs::exists(job_->checkpoints("adapters") / "step-00000012" / "adapter_config.json"));
  expect_refusal(train("adapters", with({"tune.rank=4"})), "tune.rank");

  fs::remove_all(base);
  expect_refusal(train("adapters", lora), "a tuned run needs the model that it stands on");
  fs::copy(job_->checkpoints("elsewhere") / "step-00000024", base);
  expect_refusal(train("adapters", lora), "fingerprint");
  fs::remove_all(base);
  fs::copy(job_->checkpoints("beneath") / "step-00000024", base);
  EXPECT_EQ(train("adapters", lora).exit_code, 0);
  EXPECT_EQ(job_->result("adapters").step, 24);
}

TEST_F(TrainTest, KeepsTheGoodWeightsWhenItDiverges) {
  const ProcessResult result =
      train("diverged", {"optimizer.lr=1e30", "schedule.name=constant", "schedule.warmup_steps=0",
                         "data.valid=", "evaluate.every_steps=0", "optimizer.clip_norm=0"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("A lower optimizer.lr"));
  const int step = job_->result("diverged").step;
  EXPECT_THAT(result.err, HasSubstr("the weights of step " + std::to_string(step) + " are in"));
}

TEST_F(TrainTest, TwoJobsDoNotWriteToOneRun) {
  Process first(alone("shared", {"train.steps=1000000"}));
  wait_for_step(first, "shared", 1);
  // Without a watch: it may find that the wait for the other job has taken long.
  expect_refusal(train("shared", {"comm.silence_s=0"}), "another job is writing to");
  first.send(SIGTERM);
  EXPECT_EQ(first.wait().exit_code, 75);
}

// Two nodes whose run.dir is on a disk of their own each, played by ranks that work in different folders.
TEST_F(TrainTest, ACheckpointWhoseFilesRankZeroDoesNotSeeIsNotPublished) {
  Words command = job_->command({"apart", 2, {"run.dir=runs"}});
  const std::string folder = job_->folder();
  fs::create_directories(folder + "/node-0");
  fs::create_directories(folder + "/node-1");
  command.insert(command.begin() + 2, {"sh", "-c", "cd \"$0/node-$OMPI_COMM_WORLD_RANK\" && exec \"$@\"", folder});
  const ProcessResult result = run_process(command);
  EXPECT_EQ(result.exit_code, 1) << result.err;
  EXPECT_THAT(result.err, HasSubstr("is run.dir on a file system that all nodes share?"));
  EXPECT_TRUE(fs::is_empty(folder + "/node-0/runs/apart/checkpoints"));
}

// A file system of its own for the run, of a size that suits the test.
class SmallDiskTest : public TrainTest {
 protected:
  void SetUp() override {
    if (run_process(on_disk("100k", {"true"})).exit_code != 0) {
      GTEST_SKIP() << "this user may not mount a file system";
    }
  }
  // `command` with a file system of this size at runs-small, and afterwards what is in it copied to runs-kept.
  static Words on_disk(const std::string& size, const Words& command) {
    Words words = {"unshare",
                   "--mount",
                   "sh",
                   "-c",
                   "mount -t tmpfs -o size=" + size +
                       " none \"$0/runs-small\" && \"$@\"; code=$?; "
                       "cp -r \"$0/runs-small/.\" \"$0/runs-kept\"; exit $code",
                   job_->folder()};
    fs::create_directories(job_->folder() / "runs-small");
    fs::remove_all(job_->folder() / "runs-kept");
    words.insert(words.end(), command.begin(), command.end());
    return words;
  }
  static std::string small() { return "run.dir=" + (job_->folder() / "runs-small").string(); }
};

TEST_F(SmallDiskTest, ADiskWithoutRoomForACheckpointIsRefused) {
  expect_refusal(run_process(on_disk("100k", alone("room", {small()}))), "a checkpoint of this run takes 1 MiB");
  EXPECT_TRUE(fs::is_empty(job_->folder() / "runs-kept"));
}

TEST_F(SmallDiskTest, ADiskThatFillsUpStopsTheSavesAndNotTheRun) {
  const ProcessResult result =
      run_process(on_disk("1200k", alone("full", {small(), "checkpoint.every_steps=2", "checkpoint.keep=99"})));
  EXPECT_EQ(result.exit_code, 1);  // the last checkpoint is not there, and a batch system should know
  EXPECT_THAT(result.err, HasSubstr("No space left on device"));
  EXPECT_THAT(result.err, HasSubstr("the last checkpoint, of step 24, was not saved"));
  EXPECT_THAT(result.out + result.err, HasSubstr("train: step 24 of 24 (100%)"));
  fs::create_directories(folder_of("full").parent_path());
  fs::rename(job_->folder() / "runs-kept" / "full", folder_of("full"));
  EXPECT_GE(job_->result("full").step, 2);  // intact, and the run goes on from it where there is room
  ASSERT_EQ(train("full").exit_code, 0);
  ASSERT_EQ(train("roomy").exit_code, 0);
  EXPECT_EQ(job_->result("full"), job_->result("roomy"));
}

}  // namespace
}  // namespace lockstep
