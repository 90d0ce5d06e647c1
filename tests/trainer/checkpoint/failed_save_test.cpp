// A save that cannot be written is reported and leaves nothing behind; the run goes on, and so do later saves.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include <csignal>
#include <fstream>

#include "tests/support/child_process.h"
#include "tests/support/error_matcher.h"
#include "tests/support/temporary_folder.h"
#include "tests/trainer/checkpoint/training_state.h"
#include "trainer/checkpoint/retention.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr int kNoPermission = 77;

// Mounts a file system of its own at `path`, visible to this process only.
bool mount_private_tmpfs(const fs::path& path, const char* options) {
  return unshare(CLONE_NEWNS) == 0 && mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
         mount("tmpfs", path.c_str(), "tmpfs", 0, options) == 0;
}

// In the child, failed expectations turn into its exit code.
int result_of_expectations() { return testing::Test::HasFailure() ? 1 : 0; }

void run_in_child(const std::function<int()>& body) {
  const int result = wait_for_child(start_child(body));
  if (result == kNoPermission) {
    GTEST_SKIP() << "this user may not mount a file system";
  }
  EXPECT_EQ(result, 0);
}

class FailedSaveTest : public testing::TestWithParam<bool> {
 protected:
  [[nodiscard]] static SaveSettings settings(int world) {
    return {.world = world, .background = GetParam(), .keep = 99};
  }
  TemporaryFolder folder_;
  TrainingState state_{small_layout()};
};

INSTANTIATE_TEST_SUITE_P(Modes, FailedSaveTest, testing::Bool(),
                         [](const auto& row) { return std::string(row.param ? "Background" : "Foreground"); });

TEST_P(FailedSaveTest, AFullDiskStopsTheSaveAndNotTheRun) {
  run_in_child([&] {
    if (!mount_private_tmpfs(folder_.path(), "size=400k")) {
      return kNoPermission;
    }
    SimulatedJob job(folder_.path() / "checkpoints", state_.layout, settings(2));
    SaveOutcome outcome;
    std::uint64_t step = 0;
    do {
      outcome = job.save(state_, position_at(++step));
    } while (outcome.published && step < 50);
    EXPECT_GT(step, 2U);
    EXPECT_FALSE(outcome.published);
    EXPECT_THAT(outcome.message, HasSubstr("No space left on device"));
    for (const std::string& name : names_in(folder_.path() / "checkpoints")) {
      EXPECT_THAT(name, testing::Not(HasSubstr("partial")));
    }
    const auto found = find_latest_checkpoint(
        folder_.path() / "checkpoints", [](const DamagedCheckpoint& damaged) { ADD_FAILURE() << damaged.reason; });
    EXPECT_TRUE(found && found->manifest().position.step == step - 1);

    fs::remove_all(folder_.path() / "checkpoints" / step_folder_name(1));
    EXPECT_TRUE(job.save(state_, position_at(100)).published);
    return result_of_expectations();
  });
}

TEST_P(FailedSaveTest, AReadOnlyFolderIsReported) {
  run_in_child([&] {
    if (!mount_private_tmpfs(folder_.path(), "size=1m,ro")) {
      return kNoPermission;
    }
    SimulatedJob job(folder_.path() / "checkpoints", state_.layout, settings(2));
    const SaveOutcome outcome = job.save(state_, position_at(1));
    EXPECT_FALSE(outcome.published);
    EXPECT_THAT(outcome.message, HasSubstr("rank 0: create "));
    EXPECT_THAT(outcome.message, HasSubstr("Read-only file system"));
    return result_of_expectations();
  });
}

TEST_P(FailedSaveTest, AFileSizeLimitIsReported) {
  run_in_child([&] {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {10'000, 10'000};
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) {
      return kNoPermission;
    }
    SimulatedJob job(folder_.path(), state_.layout, settings(2));
    const SaveOutcome outcome = job.save(state_, position_at(1));
    EXPECT_FALSE(outcome.published);
    EXPECT_THAT(outcome.message, HasSubstr("File too large"));
    EXPECT_THAT(names_in(folder_.path()), IsEmpty());
    return result_of_expectations();
  });
}

TEST_P(FailedSaveTest, AFileInTheFoldersPlaceIsReported) {
  std::ofstream(folder_.path() / "checkpoints") << "not a folder";
  SimulatedJob job(folder_.path() / "checkpoints", state_.layout, settings(1));
  const SaveOutcome outcome = job.save(state_, position_at(1));
  EXPECT_FALSE(outcome.published);
  EXPECT_THAT(outcome.message, HasSubstr("Not a directory"));
}

TEST_P(FailedSaveTest, OneRanksFailureDiscardsWhatTheOthersWrote) {
  // A folder where rank 1's file should go makes rank 1 fail and nobody else.
  fs::create_directories(folder_.path() / "step-00000001.partial" / "state-00001-of-00003.safetensors");
  SimulatedJob job(folder_.path(), state_.layout, settings(3));
  const SaveOutcome outcome = job.save(state_, position_at(1));
  EXPECT_FALSE(outcome.published);
  EXPECT_THAT(outcome.message, HasSubstr("rank 1: create "));
  EXPECT_THAT(outcome.message, HasSubstr("Is a directory"));
  EXPECT_THAT(names_in(folder_.path()), IsEmpty());
  EXPECT_TRUE(job.save(state_, position_at(2)).published);
  EXPECT_THAT(names_in(folder_.path()), ElementsAre("step-00000002"));
}

TEST_P(FailedSaveTest, ExtraValuesThatCannotBeReadBackAreNotPublished) {
  RunPosition position = position_at(1);
  position.extra_json = "{\"a\": ";
  SimulatedJob job(folder_.path(), state_.layout, settings(1));
  const SaveOutcome outcome = job.save(state_, position);
  EXPECT_FALSE(outcome.published);
  EXPECT_THAT(outcome.message, HasSubstr("extra values: not valid JSON"));
  EXPECT_THAT(names_in(folder_.path()), IsEmpty());
}

TEST(CheckpointOptions, ThatContradictThemselvesAreRefused) {
  const auto complaint = [](const std::function<void(CheckpointOptions&)>& change) {
    CheckpointOptions options;
    options.range = {0, small_layout().total()};
    change(options);
    return message_of_error(ErrorCode::kUsage, [&] { CheckpointWriter(small_layout(), options); });
  };
  EXPECT_THAT(complaint([](auto& o) { o.rank = 1; }), HasSubstr("rank 1 of 1"));
  EXPECT_THAT(complaint([](auto& o) { o.keep = 0; }), HasSubstr("keep is 0"));
  EXPECT_THAT(complaint([](auto& o) { o.max_mb_per_s = -1; }), HasSubstr("max_mb_per_s is -1"));
  EXPECT_THAT(complaint([](auto& o) { o.model_dtype = DType::kF64; }), HasSubstr("cannot be f64"));
  EXPECT_THAT(complaint([](auto& o) { o.range.end -= 1; }), HasSubstr("borders are multiples of 16"));
  EXPECT_THAT(complaint([](auto& o) { o.texts["../x"] = ""; }), HasSubstr("../x cannot be the name"));
  EXPECT_THAT(complaint([](auto& o) { o.texts["manifest.json"] = ""; }), HasSubstr("manifest.json cannot be the name"));
}

}  // namespace
}  // namespace lockstep
