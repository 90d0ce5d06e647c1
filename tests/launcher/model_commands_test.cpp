// What commands on a model have in common: which checkpoint they take, and output that cannot be written.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "tests/launcher/model_commands_fixture.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

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

TEST_F(ModelCommandsTest, FailWhenTheirOutputCannotBeWritten) {
  const std::string program = LOCKSTEP_PROGRAM;
  const std::string options = " --model " + checkpoint().string();
  const std::string data = " --data " + (job_->folder() / "data" / "valid").string() + " --batches 1";
  const ProcessResult generated = run_process({"sh", "-c", program + " generate" + options + " >/dev/full"});
  EXPECT_EQ(generated.exit_code, 1);
  EXPECT_EQ(generated.err, "lockstep generate: write to stdout: No space left on device\n");
  for (const std::string format : {"", " --json"}) {
    const ProcessResult evaluated =
        run_process({"sh", "-c", program + " eval" + options + data + format + " >/dev/full"});
    EXPECT_EQ(evaluated.exit_code, 1);
    EXPECT_THAT(evaluated.err, EndsWith("lockstep eval: write to stdout: No space left on device\n"));
  }
}

}  // namespace
}  // namespace lockstep
