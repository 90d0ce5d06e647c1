#include "trainer/checkpoint/retention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/error_matcher.h"
#include "tests/support/temporary_folder.h"
#include "tests/trainer/checkpoint/training_state.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::IsEmpty;

class RetentionTest : public testing::Test {
 protected:
  void save(std::uint64_t step, std::optional<double> loss = std::nullopt,
            const SaveSettings& settings = {.keep = 99}) {
    SimulatedJob job(folder_.path(), state_.layout, settings);
    RunPosition position = position_at(step);
    position.validation_loss = loss;
    const SaveOutcome outcome = job.save(state_, position);
    ASSERT_TRUE(outcome.published) << outcome.message;
    ASSERT_EQ(outcome.message, "");
  }
  void damage(std::uint64_t step) { fs::resize_file(folder_.path() / step_folder_name(step) / "model.safetensors", 9); }

  TemporaryFolder folder_;
  TrainingState state_{small_layout()};
};

TEST_F(RetentionTest, KeepsTheNewest) {
  for (const std::uint64_t step : {100, 200, 300, 400, 500}) {
    save(step, std::nullopt, {.keep = 2});
  }
  EXPECT_THAT(names_in(folder_.path()), ElementsAre("step-00000400", "step-00000500"));
}

TEST_F(RetentionTest, KeepsTheBestValidationLossAsWell) {
  const SaveSettings settings{.keep = 1, .keep_best = true};
  save(100, 3.0, settings);
  save(200, 1.0, settings);
  save(300, std::nullopt, settings);
  save(400, 2.0, settings);
  EXPECT_THAT(names_in(folder_.path()), ElementsAre("step-00000200", "step-00000400"));
  save(500, 0.5, settings);
  EXPECT_THAT(names_in(folder_.path()), ElementsAre("step-00000500"));
}

TEST_F(RetentionTest, DoesNotCountDamagedOnesAndRemovesThemWhenTheyAreOld) {
  save(100);
  save(200);
  save(300);
  save(400);
  damage(200);
  damage(400);
  apply_retention(folder_.path(), {.keep = 2});
  EXPECT_THAT(names_in(folder_.path()),
              ElementsAre("step-00000100", "step-00000200", "step-00000300", "step-00000400"));
  apply_retention(folder_.path(), {.keep = 1});
  EXPECT_THAT(names_in(folder_.path()), ElementsAre("step-00000300", "step-00000400"));
}

TEST_F(RetentionTest, RemovesNothingWhenNoneIsGood) {
  save(100);
  save(200);
  damage(100);
  damage(200);
  apply_retention(folder_.path(), {.keep = 1});
  EXPECT_THAT(names_in(folder_.path()), ElementsAre("step-00000100", "step-00000200"));
}

TEST_F(RetentionTest, LeavesOtherFilesAlone) {
  save(100);
  fs::create_directory(folder_.path() / "step-5");
  fs::create_directory(folder_.path() / "notes.partial");
  clean_leftovers(folder_.path());
  save(200, std::nullopt, {.keep = 1});
  EXPECT_THAT(names_in(folder_.path()), ElementsAre("notes.partial", "step-00000200", "step-5"));
}

TEST_F(RetentionTest, KeepingNoneIsRefused) {
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { apply_retention(folder_.path(), {.keep = 0}); }),
            "checkpoint: keep is 0, expected at least 1");
}

TEST_F(RetentionTest, CleaningRemovesWhatAKilledProcessLeft) {
  save(100);
  fs::create_directories(folder_.path() / "step-00000200.partial");
  fs::create_directories(folder_.path() / "step-00000050.deleting" / "x");
  clean_leftovers(folder_.path());
  EXPECT_THAT(names_in(folder_.path()), ElementsAre("step-00000100"));
  clean_leftovers(folder_.path() / "none");
}

TEST_F(RetentionTest, CleaningPutsBackACheckpointThatWasAboutToBeReplaced) {
  save(100);
  fs::rename(folder_.path() / "step-00000100", folder_.path() / "step-00000100.replaced");
  fs::create_directories(folder_.path() / "step-00000100.partial");
  clean_leftovers(folder_.path());
  EXPECT_THAT(names_in(folder_.path()), ElementsAre("step-00000100"));
  EXPECT_EQ(CheckpointReader(folder_.path() / "step-00000100").manifest().digest, state_.digest());

  fs::create_directories(folder_.path() / "step-00000100.replaced");
  clean_leftovers(folder_.path());
  EXPECT_THAT(names_in(folder_.path()), ElementsAre("step-00000100"));
}

TEST_F(RetentionTest, NewerCheckpointsSetAsideAreNotFoundAndGoWithTheNextSave) {
  save(100);
  save(200);
  save(300);
  EXPECT_EQ(supersede_newer(folder_.path(), 100), 2);
  EXPECT_THAT(names_in(folder_.path()),
              ElementsAre("step-00000100", "step-00000200.superseded", "step-00000300.superseded"));
  const auto found = find_latest_checkpoint(folder_.path(), [](const DamagedCheckpoint&) {});
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->manifest().position.step, 100U);
  EXPECT_EQ(supersede_newer(folder_.path(), 100), 0);
  save(200);
  EXPECT_THAT(names_in(folder_.path()), ElementsAre("step-00000100", "step-00000200"));
}

TEST(ListCheckpoints, ReturnsTheNewestFirst) {
  const TemporaryFolder folder;
  EXPECT_THAT(list_checkpoints(folder.path() / "none"), IsEmpty());
  for (const char* name : {"step-00000009", "step-100000000", "step-00000010", "step-00000011.partial"}) {
    fs::create_directory(folder.path() / name);
  }
  std::vector<std::uint64_t> steps;
  for (const CheckpointFolder& checkpoint : list_checkpoints(folder.path())) {
    steps.push_back(checkpoint.step);
  }
  EXPECT_THAT(steps, ElementsAre(100'000'000U, 10U, 9U));
}

}  // namespace
}  // namespace lockstep
