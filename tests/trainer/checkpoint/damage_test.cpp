// Whatever happens to the newest checkpoint's files, it is noticed, reported, and the one before is used.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <random>

#include "base/file.h"
#include "tests/support/error_matcher.h"
#include "tests/support/temporary_folder.h"
#include "tests/trainer/checkpoint/training_state.h"
#include "trainer/checkpoint/inspect.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kFiles[] = {"config.json",
                                  "manifest.json",
                                  "model.safetensors",
                                  "state-00000-of-00002.safetensors",
                                  "state-00001-of-00002.safetensors",
                                  "tokenizer.json"};

class DamageTest : public testing::Test {
 protected:
  DamageTest() {
    save_checkpoint(folder_.path(), TrainingState(small_layout(), 100), 100, {.world = 2});
    newest_ = save_checkpoint(folder_.path(), TrainingState(small_layout(), 200), 200, {.world = 2});
  }

  // The step that a resume would use, and why newer ones were passed over.
  std::uint64_t found_step() {
    reasons_.clear();
    const auto found = find_latest_checkpoint(folder_.path(), [&](const DamagedCheckpoint& damaged) {
      EXPECT_EQ(damaged.path, newest_);
      reasons_.push_back(damaged.reason);
    });
    EXPECT_TRUE(found.has_value());
    return found ? found->manifest().position.step : 0;
  }

  // Runs the search while a file's contents are changed; restores them.
  void expect_fallback(const std::string& name, const std::function<void(std::string&)>& damage,
                       const std::string& reason) {
    const std::string before = read_file(newest_ / name);
    std::string after = before;
    damage(after);
    write(name, after);
    EXPECT_EQ(found_step(), 100U) << name;
    ASSERT_EQ(reasons_.size(), 1U) << name;
    EXPECT_THAT(reasons_[0], HasSubstr(name));
    EXPECT_THAT(reasons_[0], HasSubstr(reason));
    write(name, before);
  }

  void write(const std::string& name, const std::string& contents) const {
    File::create(newest_ / name).write(0, std::as_bytes(std::span(contents)));
  }

  TemporaryFolder folder_;
  fs::path newest_;
  std::vector<std::string> reasons_;
};

TEST_F(DamageTest, AnIntactNewestCheckpointIsUsedWithoutComplaint) {
  EXPECT_EQ(found_step(), 200U);
  EXPECT_TRUE(reasons_.empty());
}

TEST_F(DamageTest, AFlippedBitAnywhereIsNoticed) {
  std::mt19937_64 random(7);
  for (const char* name : kFiles) {
    for (int trial = 0; trial < 25; ++trial) {
      expect_fallback(
          name, [&](std::string& bytes) { bytes[random() % bytes.size()] ^= static_cast<char>(1U << (random() % 8)); },
          "altered");
    }
  }
  EXPECT_EQ(found_step(), 200U);
}

TEST_F(DamageTest, AFileCutShortAnywhereIsNoticed) {
  std::mt19937_64 random(8);
  for (const char* name : kFiles) {
    const bool is_manifest = std::string(name) == "manifest.json";
    for (int trial = 0; trial < 10; ++trial) {
      expect_fallback(
          name, [&](std::string& bytes) { bytes.resize(trial == 0 ? 0 : random() % bytes.size()); },
          is_manifest ? "" : "bytes, expected");
    }
  }
}

TEST_F(DamageTest, AFileThatGrewIsNoticed) {
  for (const char* name : kFiles) {
    expect_fallback(
        name, [](std::string& bytes) { bytes += "x"; }, "");
  }
}

TEST_F(DamageTest, AMissingFileIsNoticed) {
  for (const char* name : kFiles) {
    fs::rename(newest_ / name, newest_ / "away");
    EXPECT_EQ(found_step(), 100U);
    ASSERT_EQ(reasons_.size(), 1U);
    EXPECT_THAT(reasons_[0], HasSubstr(std::string(name) + " is missing"));
    fs::rename(newest_ / "away", newest_ / name);
  }
}

TEST_F(DamageTest, AFolderInTheFilesPlaceIsNoticed) {
  fs::remove(newest_ / "tokenizer.json");
  fs::create_directory(newest_ / "tokenizer.json");
  EXPECT_EQ(found_step(), 100U);
}

TEST_F(DamageTest, AManifestOfGarbageIsNoticed) {
  expect_fallback(
      "manifest.json", [](std::string& bytes) { bytes.assign(bytes.size(), '\0'); }, "checksum");
  expect_fallback(
      "manifest.json", [](std::string& bytes) { bytes = "{}"; }, "too few");
}

TEST_F(DamageTest, WeightsOfADamagedCheckpointAreNotUsed) {
  std::string bytes = read_file(newest_ / "model.safetensors");
  bytes.back() ^= 1;
  write("model.safetensors", bytes);
  const ParameterLayout layout = small_layout();
  std::vector<float> weights(layout.total());
  EXPECT_THAT(message_of_error(ErrorCode::kCorrupt, [&] { load_weights(newest_, layout, weights); }),
              HasSubstr("model.safetensors was altered: its xxh3-128 is"));
}

TEST_F(DamageTest, WeightsAloneNeedNoIntactOptimizerState) {
  fs::remove(newest_ / "state-00001-of-00002.safetensors");
  const TrainingState expected(small_layout(), 200);
  std::vector<float> weights(expected.layout.total());
  load_weights(newest_, expected.layout, weights);
  EXPECT_EQ(weights, expected.master);
}

TEST_F(DamageTest, InspectNamesTheDamagedFile) {
  fs::resize_file(newest_ / "state-00001-of-00002.safetensors", 100);
  const CheckpointDescription description = describe_checkpoint(newest_, InspectDepth::kContents);
  EXPECT_FALSE(description.intact);
  EXPECT_FALSE(description.verified);
  std::vector<std::string> damaged;
  for (const auto& file : description.files) {
    if (!file.problem.empty()) {
      damaged.push_back(file.file.name);
    }
  }
  EXPECT_THAT(damaged, ElementsAre("state-00001-of-00002.safetensors"));
}

TEST_F(DamageTest, StartingOverSilentlyIsRefusedWhenNoneIsIntact) {
  fs::remove(folder_.path() / "step-00000100" / "config.json");
  fs::remove(newest_ / "tokenizer.json");
  std::vector<fs::path> seen;
  const std::string message = message_of_error(ErrorCode::kCorrupt, [&] {
    (void)find_latest_checkpoint(folder_.path(), [&](const DamagedCheckpoint& d) { seen.push_back(d.path); });
  });
  EXPECT_THAT(message,
              HasSubstr(folder_.path().string() + ": none of 2 checkpoints is intact; the newest: checkpoint"));
  EXPECT_THAT(message, HasSubstr("tokenizer.json is missing"));
  EXPECT_THAT(seen, ElementsAre(newest_, folder_.path() / "step-00000100"));
}

TEST_F(DamageTest, ACheckpointOfANewerProgramIsRefusedInsteadOfPassedOver) {
  std::string text = read_file(newest_ / "manifest.json");
  text.replace(text.find("\"version\": 1"), 12, "\"version\": 9");
  write("manifest.json", seal_manifest(text.substr(0, text.find("\"checksum\""))));
  EXPECT_THAT(message_of_error(ErrorCode::kUnsupported, [&] { (void)found_step(); }), HasSubstr("format version 9"));
}

TEST(FindLatestCheckpoint, FindsNothingInAFolderThatDoesNotExist) {
  const TemporaryFolder folder;
  EXPECT_FALSE(find_latest_checkpoint(folder.path() / "none", [](const DamagedCheckpoint&) {}).has_value());
}

}  // namespace
}  // namespace lockstep
