#include "data/pack/pack.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <atomic>
#include <string>
#include <vector>

#include "data/text/tokenizer.h"
#include "tests/data/pack/pack_fixture.h"
#include "tests/support/error_matcher.h"

namespace lockstep {
namespace {

using testing::HasSubstr;

TEST_F(PackTest, MakesADocumentOfEachFileWithAnEndAfterIt) {
  write_input("b.txt", "beta");
  write_input("a.txt", std::string("al\0pha\xFF", 7));  // bytes are bytes
  const PackResult result = pack(options_, {}, {});
  EXPECT_FALSE(result.was_complete);
  ASSERT_EQ(result.splits.size(), 1U);
  EXPECT_EQ(result.splits[0].name, "train");
  EXPECT_EQ(result.splits[0].tokens, 13U);
  EXPECT_EQ(result.splits[0].documents, 2U);
  EXPECT_EQ(documents_of(options_.out / "train"), (std::vector<std::string>{std::string("al\0pha\xFF", 7), "beta"}));
  const DatasetInfo info = Dataset::open(options_.out / "train").info();
  EXPECT_EQ(info.tokenizer.name, "bytes");
  EXPECT_EQ(info.tokenizer.vocabulary_size, 257);
  EXPECT_EQ(info.tokenizer.end_of_text, 256);
  EXPECT_EQ(Tokenizer::load(options_.out / "train/tokenizer.json").fingerprint(), info.tokenizer.fingerprint);
  EXPECT_FALSE(std::filesystem::exists(options_.out / ".pack"));
  EXPECT_FALSE(std::filesystem::exists(options_.out / "valid"));
}

TEST_F(PackTest, GivesTheSameBytesOnAnyNumberOfRanks) {
  for (std::uint64_t i = 0; i < 60; ++i) {
    write_input("f" + std::to_string(i) + ".txt", random_text(20'000 + 3'000 * i, i));
  }
  write_input("long.txt", random_text(3'000'000, 77));
  options_.split = {0.8, 0.1, 0.1};
  for (const char* tokenizer : {"bytes", "bpe:400"}) {
    options_.tokenizer = tokenizer;
    for (const int world : {1, 2, 3, 4}) {
      options_.out = folder_ / (tokenizer + std::to_string(world));
      pack_on_ranks(world, options_);
      expect_same_files(folder_ / (tokenizer + std::string("1")), options_.out);
    }
  }
  EXPECT_GE(Dataset::open(folder_ / "bytes1/train").info().files.size(), 4U);
}

TEST_F(PackTest, PutsALongFileTogetherAgain) {
  const std::string text = random_text(5'300'000, 3);
  write_input("long.txt", text);
  pack_on_ranks(2, options_);
  EXPECT_GE(Dataset::open(options_.out / "train").info().files.size(), 4U);
  EXPECT_EQ(documents_of(options_.out / "train"), (std::vector<std::string>{text}));
}

TEST_F(PackTest, TokenizesALongFileAsIfItWereInOnePiece) {
  const std::string text = random_text(4'200'000, 4);
  write_input("long.txt", text);
  options_.tokenizer = "bpe:500";
  pack_on_ranks(2, options_);
  Dataset dataset = Dataset::open(options_.out / "train");
  ASSERT_GE(dataset.info().files.size(), 3U);
  std::vector<std::int32_t> tokens(dataset.info().tokens);
  dataset.read(0, tokens);
  std::vector<std::uint32_t> whole;
  const Tokenizer tokenizer = Tokenizer::load(dataset.tokenizer_path());
  tokenizer.encode(text, whole);
  whole.push_back(*tokenizer.end_of_text());
  EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), whole.begin(), whole.end(),
                         [](std::int32_t a, std::uint32_t b) { return static_cast<std::uint32_t>(a) == b; }));
}

TEST_F(PackTest, SplitsOneFileByPositionAtLines) {
  std::string text;
  for (int i = 0; i < 100; ++i) {
    text += fmt::format("line {:04}\n", i);  // ten bytes
  }
  write_input("a.txt", text);
  options_.split = {0.9, 0.05, 0.05};
  pack(options_, {}, {});
  EXPECT_EQ(documents_of(options_.out / "train"), (std::vector<std::string>{text.substr(0, 900)}));
  EXPECT_EQ(documents_of(options_.out / "valid"), (std::vector<std::string>{text.substr(900, 50)}));
  EXPECT_EQ(documents_of(options_.out / "test"), (std::vector<std::string>{text.substr(950)}));
}

TEST_F(PackTest, SplitsFewerFilesThanSplitsEachByPosition) {
  write_input("a.txt", "11111\n22222\n");
  write_input("b.txt", "33333\n44444\n");
  options_.split = {0.5, 0.25, 0.25};
  pack(options_, {}, {});
  EXPECT_EQ(documents_of(options_.out / "train"), (std::vector<std::string>{"11111\n", "33333\n"}));
  EXPECT_EQ(documents_of(options_.out / "valid").size(), 2U);
  EXPECT_EQ(documents_of(options_.out / "test").size(), 2U);
}

TEST_F(PackTest, RefusesADocumentTooShortToBeSplit) {
  write_input("a.txt", "ab");
  options_.split = {0.9, 0.05, 0.05};
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { pack(options_, {}, {}); }),
            (folder_ / "in/a.txt").string() +
                " holds a document of 2 bytes, too short to be split into 3 parts; see --split");
  EXPECT_FALSE(std::filesystem::exists(options_.out));
}

TEST_F(PackTest, SendsEachDocumentToOneSplitAndAnotherSeedElsewhere) {
  std::vector<std::string> all;
  for (int i = 0; i < 40; ++i) {
    all.push_back("document " + std::to_string(i));
    write_input(std::to_string(i) + ".txt", all.back());
  }
  options_.split = {0.5, 0.25, 0.25};
  std::vector<std::vector<std::string>> trains;
  for (const std::uint64_t seed : {1U, 2U}) {
    options_.seed = seed;
    options_.out = folder_ / ("out" + std::to_string(seed));
    pack(options_, {}, {});
    trains.push_back(documents_of(options_.out / "train"));
    std::vector<std::string> packed = trains.back();
    for (const char* split : {"valid", "test"}) {
      const auto documents = documents_of(options_.out / split);
      packed.insert(packed.end(), documents.begin(), documents.end());
    }
    EXPECT_THAT(packed, testing::UnorderedElementsAreArray(all));
    EXPECT_NEAR(static_cast<double>(trains.back().size()), 20, 1);
  }
  EXPECT_NE(trains[0], trains[1]);
}

TEST_F(PackTest, TrainsTheVocabularyItIsAskedFor) {
  write_input("a.txt", random_text(300'000, 1));
  options_.tokenizer = "bpe:300";
  pack(options_, {}, {});
  const DatasetInfo info = Dataset::open(options_.out / "train").info();
  EXPECT_EQ(info.tokenizer.name, "bpe:300");
  EXPECT_EQ(info.tokenizer.vocabulary_size, 300);
  EXPECT_LT(info.tokens, 300'000U);
}

TEST_F(PackTest, TakesATokenizerFromAFile) {
  write_input("a.txt", random_text(100'000, 1));
  options_.tokenizer = "bpe:300";
  pack(options_, {}, {});
  PackOptions again = options_;
  again.tokenizer = (options_.out / "train/tokenizer.json").string();
  again.out = folder_ / "again";
  pack_on_ranks(2, again);
  EXPECT_EQ(read_file(options_.out / "train/00000.h5"), read_file(again.out / "train/00000.h5"));
  EXPECT_EQ(Dataset::open(again.out / "train").info().tokenizer.name, "tokenizer.json");
}

TEST_F(PackTest, ReportsItsProgressFromTheBeginningOfAStageToItsEnd) {
  write_input("a.txt", random_text(3'000'000, 1));
  options_.tokenizer = "bpe:300";
  std::vector<std::string> stages;
  std::vector<std::uint64_t> done;
  PackHooks hooks;
  hooks.progress = [&](std::string_view stage, std::uint64_t done_bytes, std::uint64_t total_bytes) {
    EXPECT_EQ(total_bytes, 3'000'000U);
    if (stages.empty() || stages.back() != stage) {
      stages.emplace_back(stage);
      EXPECT_EQ(done_bytes, 0U);
      EXPECT_TRUE(done.empty() || done.back() == total_bytes);
    }
    done.push_back(done_bytes);
  };
  pack_on_ranks(2, options_, hooks);
  EXPECT_EQ(stages, (std::vector<std::string>{"count words", "pack"}));
  EXPECT_EQ(done.back(), 3'000'000U);
}

TEST_F(PackTest, ChecksItsOptionsBeforeAnythingElse) {
  write_input("a.txt", "a");
  const auto error_with = [&](const std::function<void(PackOptions&)>& change) {
    PackOptions options = options_;
    change(options);
    return message_of_error(ErrorCode::kUsage, [&] { pack_on_ranks(2, options); });
  };
  EXPECT_EQ(error_with([](PackOptions& o) { o.tokenizer = "bpe:256"; }),
            "--tokenizer bpe:256: expected bpe:SIZE with a size from 257 to 16777216");
  EXPECT_EQ(error_with([](PackOptions& o) { o.tokenizer = "bpe:many"; }),
            "--tokenizer bpe:many: expected bpe:SIZE with a size from 257 to 16777216");
  EXPECT_EQ(error_with([](PackOptions& o) { o.tokenizer = "byte"; }),
            "--tokenizer byte: no such file; expected bytes, bpe:SIZE, or a tokenizer.json or GGUF file");
  EXPECT_EQ(error_with([](PackOptions& o) { o.shard_mib = 0; }), "--shard-mib is 0, expected at least 1");
  EXPECT_EQ(error_with([](PackOptions& o) { o.split = {0.5}; }), "the shares of --split add up to 0.5, expected 1");
  EXPECT_EQ(error_with([](PackOptions& o) { o.inputs = {}; }), "no input given");
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [] { static_cast<void>(parse_pack_format("txt")); }),
            "--format is txt, expected text, jsonl or tokens");
  EXPECT_FALSE(std::filesystem::exists(options_.out));
}

TEST_F(PackTest, SaysThatTheOutputCannotBeWritten) {
  write_input("a.txt", "a");
  write_file_atomic(folder_ / "file", "");
  options_.out = folder_ / "file";
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { pack_on_ranks(2, options_); }),
            (folder_ / "file").string() + " is not a folder");
  options_.out = folder_ / "file/out";
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { pack(options_, {}, {}); }),
            "cannot write to " + (folder_ / "file/out").string() + ": Not a directory");
  options_.out = "/proc/lockstep-out";
  EXPECT_THAT(message_of_error(ErrorCode::kUsage, [&] { pack(options_, {}, {}); }),
              HasSubstr("cannot write to /proc/lockstep-out: "));
}

TEST_F(PackTest, EndsOnEveryRankWhenOneFails) {
  for (std::uint64_t i = 0; i < 4; ++i) {
    write_input("f" + std::to_string(i) + ".txt", random_text(2'000'000, i));
  }
  // The shard of the third unit cannot be made: a folder is in its place.
  std::atomic<bool> blocked = false;
  PackHooks hooks;
  hooks.progress = [&](std::string_view, std::uint64_t, std::uint64_t) {
    if (!blocked.exchange(true)) {
      std::filesystem::create_directory(options_.out / ".pack/train-00002.h5.partial");
    }
  };
  EXPECT_THAT(message_of_error(ErrorCode::kIo, [&] { pack_on_ranks(3, options_, hooks); }),
              HasSubstr("train-00002.h5.partial: Is a directory"));
  // The other units are kept, and when the trouble is over the run goes on.
  std::filesystem::remove(options_.out / ".pack/train-00002.h5.partial");
  std::vector<std::string> messages;
  PackHooks listening;
  listening.message = [&](const std::string& line) { messages.push_back(line); };
  pack_on_ranks(2, options_, listening);
  ASSERT_FALSE(messages.empty());
  EXPECT_THAT(messages[0], HasSubstr("2 of 8 parts were finished before"));
}

}  // namespace
}  // namespace lockstep
