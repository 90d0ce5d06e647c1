// lockstep generate and lockstep eval as people run them, on a small run that lockstep train made.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "base/file.h"
#include "tests/support/training_job.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;
using Words = std::vector<std::string>;

class ModelCommandsTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    job_ = new TrainingJob({LOCKSTEP_PROGRAM, LOCKSTEP_MPIRUN});
    const ProcessResult trained = job_->train({"r", 1, {"train.steps=12", "checkpoint.every_steps=6"}});
    ASSERT_EQ(trained.exit_code, 0) << trained.err;
  }
  static void TearDownTestSuite() {
    delete job_;
    job_ = nullptr;
  }

  static fs::path run() { return job_->folder() / "runs" / "r"; }
  static fs::path checkpoint() { return job_->checkpoints("r") / "step-00000012"; }

  static ProcessResult lockstep(const std::string& command, const Words& arguments) {
    Words words = {LOCKSTEP_PROGRAM, command};
    words.insert(words.end(), arguments.begin(), arguments.end());
    return run_process(words);
  }
  // 20 tokens after "w1 w7 ".
  static ProcessResult generate(const Words& options, const fs::path& model = run()) {
    Words words = {"--model", model, "--max-tokens", "20", "--prompt", "w1 w7 "};
    words.insert(words.end(), options.begin(), options.end());
    return lockstep("generate", words);
  }
  static std::string text(const Words& options) {
    const ProcessResult result = generate(options);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return result.out;
  }
  static ProcessResult eval(const Words& options, const fs::path& model = run()) {
    Words words = {"--model", model, "--data", job_->folder() / "data" / "valid"};
    words.insert(words.end(), options.begin(), options.end());
    return lockstep("eval", words);
  }

  // A copy of the run whose files may be changed.
  static fs::path copy_of_run(const std::string& name) {
    const fs::path copy = job_->folder() / "runs" / name;
    fs::copy(run(), copy, fs::copy_options::recursive);
    return copy;
  }
  static void damage(const fs::path& file) { fs::resize_file(file, fs::file_size(file) - 1); }

  static inline TrainingJob* job_ = nullptr;
};

TEST_F(ModelCommandsTest, SayWhichDamagedCheckpointTheyPassOverAndWhichTheyTake) {
  const fs::path copy = copy_of_run("damaged-newest");
  const fs::path newest = copy / "checkpoints" / "step-00000012";
  const fs::path older = copy / "checkpoints" / "step-00000006";
  damage(newest / "model.safetensors");
  for (const ProcessResult& result : {generate({}, copy), eval({"--batches", "1"}, copy)}) {
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_THAT(result.err, StartsWith("warning: checkpoint " + newest.string() + " is damaged and not used: "));
    EXPECT_THAT(result.err, HasSubstr("model: " + older.string() + "\n"));
  }
}

TEST_F(ModelCommandsTest, AreSilentAboutAModelThatIsNamedItself) {
  EXPECT_THAT(generate({}, checkpoint()).err, Not(HasSubstr("model: ")));
}

TEST_F(ModelCommandsTest, RefuseARunWhoseCheckpointsAreAllDamaged) {
  const fs::path copy = copy_of_run("damaged-all");
  for (const auto& entry : fs::directory_iterator(copy / "checkpoints")) {
    damage(entry.path() / "model.safetensors");
  }
  for (const ProcessResult& result : {generate({}, copy), eval({}, copy)}) {
    EXPECT_EQ(result.exit_code, 2);
    EXPECT_EQ(result.out, "");
    EXPECT_THAT(result.err,
                HasSubstr((copy / "checkpoints").string() + ": none of 2 checkpoints is intact; the newest"));
    EXPECT_THAT(result.err, Not(HasSubstr("resume")));
  }
}

}  // namespace
}  // namespace lockstep
