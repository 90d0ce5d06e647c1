// What a pack run does in a folder where another one has been, finished or interrupted at any moment.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "data/pack/pack.h"
#include "tests/data/pack/pack_fixture.h"
#include "tests/support/child_process.h"
#include "tests/support/error_matcher.h"

namespace lockstep {
namespace {

using testing::HasSubstr;

class PackRestartTest : public PackTest {
 protected:
  PackRestartTest() {
    for (std::uint64_t i = 0; i < 6; ++i) {
      write_input("f" + std::to_string(i) + ".txt", random_text(900'000, i));
    }
    options_.split = {0.6, 0.2, 0.2};
    reference_ = options_;
    reference_.out = folder_ / "reference";
  }

  std::vector<std::string> run(int world) {
    std::vector<std::string> messages;
    PackHooks hooks;
    hooks.message = [&](const std::string& line) { messages.push_back(line); };
    result_ = pack_on_ranks(world, options_, hooks);
    return messages;
  }
  std::string error_of_run(ErrorCode code = ErrorCode::kUsage) {
    return message_of_error(code, [&] { pack(options_, {}, {}); });
  }

  PackOptions reference_;
  PackResult result_;
};

TEST_F(PackRestartTest, DoesNothingWhenAllIsDone) {
  run(1);
  const auto before = std::filesystem::last_write_time(options_.out / "train/00000.h5");
  run(2);
  EXPECT_TRUE(result_.was_complete);
  ASSERT_EQ(result_.splits.size(), 3U);
  EXPECT_GT(result_.splits[1].tokens, 0U);
  EXPECT_EQ(std::filesystem::last_write_time(options_.out / "train/00000.h5"), before);
}

TEST_F(PackRestartTest, StopsWhenAskedAndGoesOnWhereItWas) {
  options_.tokenizer = reference_.tokenizer = "bpe:300";
  pack(reference_, {}, {});
  int asked = 0;
  int limit = 6;
  PackHooks hooks;
  hooks.stop_requested = [&] { return ++asked > limit; };
  int stops = 0;
  for (PackResult result = pack(options_, {}, hooks); result.was_stopped; result = pack(options_, {}, hooks)) {
    EXPECT_FALSE(std::filesystem::exists(options_.out / "train/dataset.json"));
    EXPECT_TRUE(result.splits.empty());
    ++stops;
    asked = 0;
    limit += 6;
    ASSERT_LT(stops, 20) << "it does not get on";
  }
  EXPECT_GE(stops, 2);
  expect_same_files(reference_.out, options_.out);
}

TEST_F(PackRestartTest, RefusesToMixWithAnotherRunSayingWhatDiffers) {
  run(1);
  const std::string out = options_.out.string();
  const std::string advice = "; use --overwrite or another --out";
  options_.seed = 2;
  EXPECT_EQ(error_of_run(), out + " holds a dataset packed with seed 1337, asked for is 2" + advice);
  options_.seed = 1337;
  options_.split = {1.0};
  EXPECT_EQ(error_of_run(), out + " holds a dataset packed with split 0.6,0.2,0.2, asked for is 1,0,0" + advice);
  options_.split = {0.6, 0.2, 0.2};
  options_.tokenizer = "bpe:300";
  EXPECT_THAT(error_of_run(), HasSubstr("asked for is bpe:300 on 256 MiB"));
  options_.tokenizer = "bytes";
  write_input("f0.txt", "changed");
  EXPECT_THAT(error_of_run(), HasSubstr(" holds a dataset packed with input 6 files of 5400000 bytes, "));
  options_.inputs = {folder_ / "in/f1.txt"};
  EXPECT_THAT(error_of_run(), HasSubstr(", asked for is 1 files of 900000 bytes, "));
  options_.when_other = "this is no place for it";
  EXPECT_EQ(error_of_run(), "this is no place for it");
}

TEST_F(PackRestartTest, ReplacesAnotherRunWhenTold) {
  run(1);
  write_file_atomic(options_.out / "train/notes.txt", "mine");
  options_.overwrite = Overwrite::kAll;
  options_.seed = reference_.seed = 2;
  EXPECT_FALSE(result_.replaced_other);
  run(2);
  EXPECT_FALSE(result_.was_complete);
  EXPECT_TRUE(result_.replaced_other);
  EXPECT_EQ(read_file(options_.out / "train/notes.txt"), "mine") << "only what pack made may go";
  std::filesystem::remove(options_.out / "train/notes.txt");
  pack(reference_, {}, {});
  expect_same_files(reference_.out, options_.out);
}

TEST_F(PackRestartTest, KeepsTheOldDatasetWhenTheInputThatIsToReplaceItIsBad) {
  run(1);
  const auto before = contents_of(options_.out);
  write_input("c.jsonl", "{\"text\": \"good\"}\n{\"text\": 5}\n");
  options_.inputs = {folder_ / "in/c.jsonl"};
  options_.format = PackFormat::kJsonl;
  options_.split = {1.0};
  options_.overwrite = Overwrite::kAll;
  EXPECT_THAT(error_of_run(), HasSubstr("c.jsonl line 2: "));
  EXPECT_TRUE(contents_of(options_.out) == before);
}

// The old dataset's shard has the name and the size of the one that was lost of the run that is to replace it.
TEST_F(PackRestartTest, LeavesNothingOfAnInterruptedRunWhoseInputTurnsOutBad) {
  std::string text;
  for (int i = 0; i < 40'000; ++i) {
    text += i == 39'000 ? "{}\n" : "{\"text\": \"" + std::string(80, 'x') + "\"}\n";
  }
  write_input("c.jsonl", text);
  options_.inputs = {folder_ / "in/c.jsonl"};
  options_.format = PackFormat::kJsonl;
  options_.out = folder_ / "new/out";
  PackHooks hooks;
  hooks.stop_requested = [asked = std::make_shared<int>(0)] { return ++*asked > 16'000; };
  ASSERT_TRUE(pack(options_, {}, hooks).was_stopped);
  EXPECT_THAT(error_of_run(), HasSubstr("c.jsonl line 39001: "));
  EXPECT_FALSE(std::filesystem::exists(options_.out));
}

TEST_F(PackRestartTest, DoesNotTakeAnOldShardForOneOfItsOwn) {
  const auto overwrite_until = [&](int limit) {
    int asked = 0;
    PackHooks hooks;
    hooks.stop_requested = [&] { return ++asked > limit; };
    return pack(options_, {}, hooks).was_stopped;
  };
  options_.split = reference_.split = {1.0};
  run(1);
  options_.overwrite = Overwrite::kAll;
  options_.seed = reference_.seed = 2;
  ASSERT_TRUE(overwrite_until(8));
  std::filesystem::copy_file(options_.out / ".pack/train-00000.h5", options_.out / "train/00000.h5",
                             std::filesystem::copy_options::overwrite_existing);
  File::open_or_create(options_.out / "train/00000.h5").write(5000, std::as_bytes(std::span("damage")));
  std::filesystem::remove(options_.out / ".pack/train-00000.h5");
  run(1);
  pack(reference_, {}, {});
  expect_same_files(reference_.out, options_.out);
}

TEST_F(PackRestartTest, RefusesFilesInItsWayThatItDidNotMake) {
  for (const char* name : {"valid/dataset.json", "train/00000.h5", "test/tokenizer.json"}) {
    std::filesystem::remove_all(options_.out);
    std::filesystem::create_directories((options_.out / name).parent_path());
    write_file_atomic(options_.out / name, "mine");
    EXPECT_EQ(error_of_run(), (options_.out / name).string() +
                                  " is in the way, and nothing says that pack made it; use --overwrite or another "
                                  "--out");
    EXPECT_EQ(read_file(options_.out / name), "mine");
    EXPECT_EQ(contents_of(options_.out).size(), 1U);
  }
}

TEST_F(PackRestartTest, GoesOnBesideFilesThatAreNotInItsWay) {
  std::filesystem::create_directories(options_.out / "train");
  write_file_atomic(options_.out / "train/notes.txt", "mine");
  write_file_atomic(options_.out / "00000.h5", "mine too");
  run(1);
  EXPECT_EQ(read_file(options_.out / "train/notes.txt"), "mine");
  EXPECT_EQ(read_file(options_.out / "00000.h5"), "mine too");
  EXPECT_FALSE(documents_of(options_.out / "train").empty());
}

TEST_F(PackRestartTest, GoesOnAndIsDoneInAFolderInsideTheInput) {
  pack(reference_, {}, {});
  options_.out = folder_ / "in/packed";
  int asked = 0;
  PackHooks hooks;
  hooks.stop_requested = [&] { return ++asked > 8; };
  ASSERT_TRUE(pack(options_, {}, hooks).was_stopped);
  EXPECT_THAT(run(2), testing::Contains(HasSubstr("going on in")));
  expect_same_files(reference_.out, options_.out);
  run(1);
  EXPECT_TRUE(result_.was_complete);
}

TEST_F(PackRestartTest, PacksAgainWhatSomebodyRemovedOrDamaged) {
  pack(reference_, {}, {});
  run(1);
  const std::filesystem::path shard = options_.out / "valid/00000.h5";
  const std::vector<std::function<void()>> losses = {
      [&] { std::filesystem::remove_all(options_.out / "valid"); },
      [&] { std::filesystem::remove(shard); },
      [&] { std::filesystem::resize_file(shard, std::filesystem::file_size(shard) - 1); },
      [&] { write_file_atomic(options_.out / "valid/dataset.json", "{"); },
  };
  for (const auto& lose : losses) {
    lose();
    const std::vector<std::string> messages = run(1);
    EXPECT_FALSE(result_.was_complete);
    expect_same_files(reference_.out, options_.out);
    if (&lose != &losses.front()) {
      ASSERT_FALSE(messages.empty());
      EXPECT_THAT(messages[0],
                  testing::AllOf(HasSubstr("packing again what is in " + options_.out.string()), HasSubstr("valid/")));
    }
  }
}

TEST_F(PackRestartTest, DoesAgainWhatWasLostOfAnInterruptedRun) {
  pack(reference_, {}, {});
  int asked = 0;
  PackHooks hooks;
  hooks.stop_requested = [&] { return ++asked > 8; };
  ASSERT_TRUE(pack(options_, {}, hooks).was_stopped);
  // A shard cut short, a record that is damaged, and what another run left half written.
  std::filesystem::resize_file(options_.out / ".pack/train-00000.h5", 10);
  write_file_atomic(options_.out / ".pack/unit-00001.json", "{");
  write_file_atomic(options_.out / ".pack/train-00003.h5.0a1b2c3d.partial", "?");
  EXPECT_THAT(run(2), testing::Each(testing::Not(HasSubstr("all"))));
  expect_same_files(reference_.out, options_.out);
}

TEST_F(PackRestartTest, KeepsTwoRunsOutOfOneFolder) {
  bool nested = false;
  PackHooks hooks;
  hooks.progress = [&](std::string_view, std::uint64_t, std::uint64_t) {
    if (!std::exchange(nested, true)) {
      EXPECT_THAT(error_of_run(), HasSubstr("another run is packing into " + options_.out.string()));
    }
  };
  pack(options_, {}, hooks);
  EXPECT_TRUE(nested);
  EXPECT_FALSE(documents_of(options_.out / "train").empty());
}

// The child is killed by itself, at the n-th time that it asks whether to stop or reports: within a unit, between
// units, and before publishing.
TEST_F(PackRestartTest, SurvivesBeingKilledAtAnyMoment) {
  options_.tokenizer = reference_.tokenizer = "bpe:300";
  pack(reference_, {}, {});
  int kills = 0;
  for (int moment = 3;; moment += 4) {
    const pid_t child = start_child([&] {
      int count = 0;
      const auto tick = [&] {
        if (++count > moment) {
          ::raise(SIGKILL);
        }
      };
      PackHooks hooks;
      hooks.stop_requested = [&] {
        tick();
        return false;
      };
      hooks.progress = [&](std::string_view, std::uint64_t, std::uint64_t) { tick(); };
      pack(options_, {}, hooks);
      return 0;
    });
    const int end = wait_for_child(child);
    if (end == 0) {
      break;
    }
    ASSERT_EQ(end, -SIGKILL);
    ++kills;
    EXPECT_FALSE(std::filesystem::exists(options_.out / "train/dataset.json"));
    ASSERT_LT(kills, 60);
  }
  EXPECT_GE(kills, 6);
  expect_same_files(reference_.out, options_.out);
}

}  // namespace
}  // namespace lockstep
