#include "data/pack/pack.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/text/byte_alphabet.h"
#include "data/text/tokenizer.h"
#include "tests/data/pack/pack_fixture.h"
#include "tests/data/text/gguf_builder.h"
#include "tests/support/error_matcher.h"

namespace lockstep {
namespace {

using testing::HasSubstr;

struct AddedToken {
  std::string text;
  bool special = false;
};

// A tokenizer.json of the 256 bytes, in order, and added tokens from 256 on.
std::string tokenizer_with_added(const std::vector<AddedToken>& added) {
  nlohmann::json json = nlohmann::json::parse(Tokenizer::bytes().to_json());
  json["model"]["vocab"].erase("<|endoftext|>");
  json["added_tokens"] = nlohmann::json::array();
  for (const auto& [text, special] : added) {
    json["added_tokens"].push_back(
        {{"id", 256 + json["added_tokens"].size()}, {"content", text}, {"special", special}, {"normalized", false}});
  }
  return json.dump();
}

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

class LongFileTest : public PackTest, public testing::WithParamInterface<const char*> {};

TEST_P(LongFileTest, IsTokenizedAsIfItWereInOnePiece) {
  const std::string text = random_text(4'200'000, 4);
  write_input("long.txt", text);
  options_.tokenizer = GetParam();
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

INSTANTIATE_TEST_SUITE_P(Tokenizers, LongFileTest,
                         testing::Values("bpe:500", LOCKSTEP_GOLDEN_TEXT "/sentencepiece.model"));

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

// A GGUF vocabulary of the bytes and three more tokens, of which the last ends a text and the one before usually would.
TEST_F(PackTest, EndsDocumentsAsAGgufFileSays) {
  std::vector<std::string> tokens;
  std::vector<std::uint32_t> types(256, 1);
  for (unsigned byte = 0; byte < 256; ++byte) {
    tokens.push_back(to_characters(std::string(1, static_cast<char>(byte))));
  }
  for (const char* token : {"ab", "<|endoftext|>", "<|stop|>"}) {
    tokens.emplace_back(token);
    types.push_back(token[0] == '<' ? 3 : 1);
  }
  write_file_atomic(folder_ / "v.gguf", GgufBuilder()
                                            .string_key("tokenizer.ggml.model", "gpt2")
                                            .string_key("tokenizer.ggml.pre", "gpt-2")
                                            .strings_key("tokenizer.ggml.tokens", tokens)
                                            .i32s_key("tokenizer.ggml.token_type", types)
                                            .strings_key("tokenizer.ggml.merges", {"a b"})
                                            .u32_key("tokenizer.ggml.eos_token_id", 258)
                                            .bytes());
  write_input("a.txt", "ab<|stop|>");
  options_.tokenizer = (folder_ / "v.gguf").string();
  pack_on_ranks(2, options_);
  Dataset dataset = Dataset::open(options_.out / "train");
  EXPECT_EQ(dataset.info().tokenizer.name, "v.gguf");
  EXPECT_EQ(dataset.info().tokenizer.end_of_text, 258);
  EXPECT_EQ(Tokenizer::load(dataset.tokenizer_path()).fingerprint(), dataset.info().tokenizer.fingerprint);
  std::vector<std::int32_t> ids(dataset.info().tokens);
  dataset.read(0, ids);
  EXPECT_EQ(ids, (std::vector<std::int32_t>{256, '<', '|', 's', 't', 'o', 'p', '|', '>', 258}));
}

TEST_F(PackTest, EndsDocumentsWithTheTokenThatIsAskedFor) {
  write_file_atomic(folder_ / "t.json", tokenizer_with_added({{"<|stop|>", true}, {"<go>", false}}));
  write_input("a.txt", "a<|stop|><go>");
  options_.tokenizer = (folder_ / "t.json").string();
  const auto error = [&] { return message_of_error(ErrorCode::kUsage, [&] { pack_on_ranks(2, options_); }); };
  EXPECT_EQ(error(), "the tokenizer " + options_.tokenizer +
                         " names no end-of-text token to put between documents; choose one of its added tokens with "
                         "--end-of-text");
  options_.end_of_text = "<|end|>";
  EXPECT_EQ(error(), "--end-of-text \"<|end|>\": the tokenizer " + options_.tokenizer + " has no such added token");
  options_.end_of_text = "<|stop|>";
  pack_on_ranks(2, options_);
  EXPECT_EQ(Dataset::open(options_.out / "train").info().tokenizer.end_of_text, 256);
  EXPECT_EQ(documents_of(options_.out / "train").size(), 1U);
  options_.end_of_text = "<go>";  // found in data by itself, were it not the end of a text
  EXPECT_THAT(error(), HasSubstr("packed with end-of-text 256, asked for is 257; use --overwrite"));
  options_.overwrite = Overwrite::kAll;
  pack(options_, {}, {});
  Dataset dataset = Dataset::open(options_.out / "train");
  std::vector<std::int32_t> ids(dataset.info().tokens);
  dataset.read(0, ids);
  EXPECT_EQ(ids.back(), 257);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 257), 1);
  options_.tokenizer = "bytes";
  EXPECT_EQ(error(), "--end-of-text is for a tokenizer that is read from a file, not for bytes");
}

TEST_F(PackTest, LeavesNothingWhenThePatternOfATokenizerGivesUp) {
  nlohmann::json json = nlohmann::json::parse(tokenizer_with_added({{"<|endoftext|>", true}}));
  json["model"]["merges"] = {"a b"};
  json["model"]["vocab"]["ab"] = 257;
  json["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Split"}, {"pattern", {{"Regex", "(a+)+$"}}}, {"behavior", "Isolated"}, {"invert", false}},
        {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  write_file_atomic(folder_ / "t.json", json.dump());
  write_input("a.txt", std::string(100'000, 'a') + "b");
  options_.tokenizer = (folder_ / "t.json").string();
  EXPECT_THAT(message_of_error(ErrorCode::kUnsupported, [&] { pack_on_ranks(2, options_); }), HasSubstr("(a+)+$"));
  EXPECT_FALSE(std::filesystem::exists(options_.out));
}

TEST_F(PackTest, TakesTheFirstLinesOfEachFile) {
  options_.format = PackFormat::kJsonl;
  options_.tokenizer = "bytes";
  options_.split = {1};
  options_.most = 2;
  write_input("a.jsonl", "{\"text\": \"a\"}\n\n{\"text\": \"b\"}\n{\"text\": \"c\"}\n");
  write_input("b.jsonl", "{\"text\": \"d\"}\n");
  EXPECT_EQ(pack(options_, {}, {}).splits.front().documents, 3U);
  EXPECT_EQ(Dataset::open(options_.out / "train").info().tokens, 6U);  // each with its end
  options_.format = PackFormat::kText;
  options_.out = folder_ / "other";
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { pack(options_, {}, {}); }),
            "--max-samples is for --format jsonl, chat or pairs");
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
            "--tokenizer byte: no such file; expected bytes, bpe:SIZE, or a tokenizer.json, tokenizer.model or "
            "GGUF file");
  EXPECT_EQ(error_with([](PackOptions& o) { o.shard_mib = 0; }), "--shard-mib is 0, expected 1 to 1048576 MiB");
  EXPECT_EQ(error_with([](PackOptions& o) { o.memory_mib = 1048577; }),
            "--memory is 1048577, expected 1 to 1048576 MiB");
  EXPECT_EQ(error_with([](PackOptions& o) { o.bpe_sample_mib = 0; }),
            "--bpe-sample-mib is 0, expected 1 to 1048576 MiB");
  EXPECT_EQ(error_with([](PackOptions& o) { o.split = {0.5}; }), "the shares of --split add up to 0.5, expected 1");
  EXPECT_EQ(error_with([](PackOptions& o) { o.inputs = {}; }), "no input given");
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [] { static_cast<void>(parse_pack_format("txt")); }),
            "--format is txt, expected text, jsonl, tokens, chat or pairs");
  EXPECT_FALSE(std::filesystem::exists(options_.out));
}

TEST_F(PackTest, SaysThatTheOutputCannotBeWritten) {
  write_input("a.txt", "a");
  write_file_atomic(folder_ / "file", "");
  options_.out = folder_ / "file";
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { pack_on_ranks(2, options_); }),
            (folder_ / "file").string() + " cannot be written: " + (folder_ / "file").string() + " is not a folder");
  options_.out = folder_ / "file/out";
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { pack(options_, {}, {}); }),
            options_.out.string() + " cannot be written: " + (folder_ / "file").string() + " is not a folder");
  options_.out = "/proc/lockstep-out";
  EXPECT_THAT(message_of_error(ErrorCode::kUsage, [&] { pack(options_, {}, {}); }),
              HasSubstr("/proc/lockstep-out cannot be written: "));
}

TEST_F(PackTest, SaysBeforehandThatTheDiskIsTooSmall) {
  constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
  constexpr std::uint64_t kInputMib = std::uint64_t{4} << 20;  // 4 TiB, of which nothing is on the disk
  write_input("a.txt", "a");
  std::error_code refused;
  std::filesystem::resize_file(folder_ / "in/a.txt", kInputMib * kMiB, refused);
  const std::uint64_t room = std::filesystem::space(folder_.path()).available;
  if (refused || room >= 2 * kInputMib * kMiB) {
    GTEST_SKIP() << "no file here is larger than the disk";
  }
  options_.shard_mib = kInputMib / 4;
  EXPECT_THAT(message_of_error(ErrorCode::kUsage, [&] { pack_on_ranks(2, options_); }),
              testing::MatchesRegex(options_.out.string() +
                                    " has room for [0-9]+ MiB; 4194304 MiB of input are left to pack and take at least "
                                    "8388609 MiB"));
  EXPECT_FALSE(std::filesystem::exists(options_.out));
}

TEST_F(PackTest, RefusesATokenizerThatCannotBeRead) {
  write_input("a.txt", "a");
  options_.tokenizer = folder_.path().string();
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { pack_on_ranks(2, options_); }),
            "--tokenizer: cannot read " + (folder_ / "tokenizer.json").string() + ": No such file or directory");
}

TEST_F(PackTest, EndsOnEveryRankWhenOneFails) {
  for (std::uint64_t i = 0; i < 4; ++i) {
    write_input("f" + std::to_string(i) + ".txt", random_text(2'000'000, i));
  }
  PackHooks stopping;
  stopping.stop_requested = [] { return true; };
  ASSERT_TRUE(pack(options_, {}, stopping).was_stopped);
  // The shard of the third unit cannot get its name: a folder has it.
  const std::filesystem::path shard = options_.out / ".pack/train-00002.h5";
  std::filesystem::create_directory(shard);
  EXPECT_THAT(message_of_error(ErrorCode::kIo, [&] { pack_on_ranks(3, options_); }),
              HasSubstr(shard.string() + ": Is a directory"));
  // The other units are kept, nothing is left of the one that failed, and when the trouble is over the run goes on.
  for (const auto& entry : std::filesystem::directory_iterator(options_.out / ".pack")) {
    EXPECT_NE(entry.path().extension(), ".partial") << entry.path();
  }
  std::filesystem::remove(shard);
  std::vector<std::string> messages;
  PackHooks listening;
  listening.message = [&](const std::string& line) { messages.push_back(line); };
  pack_on_ranks(2, options_, listening);
  ASSERT_FALSE(messages.empty());
  EXPECT_THAT(messages[0], HasSubstr("2 of 8 parts were finished before"));
}

}  // namespace
}  // namespace lockstep
