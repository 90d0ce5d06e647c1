#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "data/pack/inputs.h"
#include "data/pack/plan.h"
#include "tests/data/pack/pack_fixture.h"
#include "tests/support/error_matcher.h"

namespace lockstep {
namespace {

class JsonLinesTest : public PackTest {
 protected:
  JsonLinesTest() { options_.format = PackFormat::kJsonl; }

  std::vector<std::string> packed(const std::string& text) {
    write_input("c.jsonl", text);
    pack(options_, {}, {});
    return documents_of(options_.out / "train");
  }
  std::string error_of(const std::string& text, const std::filesystem::path& out = {}) {
    options_.out = out.empty() ? options_.out : out;
    write_input("c.jsonl", text);
    const std::string message = message_of_error(ErrorCode::kUsage, [&] { pack(options_, {}, {}); });
    EXPECT_FALSE(std::filesystem::exists(options_.out)) << "something was left behind";
    const std::string prefix = (folder_ / "in/c.jsonl").string() + " ";
    EXPECT_THAT(message, testing::StartsWith(prefix));
    return message.substr(prefix.size());
  }
};

TEST_F(JsonLinesTest, MakesADocumentOfEachLine) {
  EXPECT_EQ(packed("{\"text\": \"one\"}\n\n  \r\n{\"n\": 1, \"text\": \"t\\u00e9\\nwo\"}\r\n{\"text\": "
                   "\"\"}\n{\"text\":\"end\"}"),
            (std::vector<std::string>{"one", "t\xC3\xA9\nwo", "end"}));
}

TEST_F(JsonLinesTest, ReadsTheFieldThatIsAskedFor) {
  options_.field = "content";
  EXPECT_EQ(packed("{\"text\": \"no\", \"content\": \"yes\"}\n"), (std::vector<std::string>{"yes"}));
}

TEST_F(JsonLinesTest, NamesTheLineThatIsWrong) {
  EXPECT_EQ(error_of("{\"text\": \"a\"}\n\n{\"txt\": \"b\"}\n"), "line 3: \"text\" is missing");
  EXPECT_EQ(error_of("{\"text\": 5}\n"), "line 1: \"text\" is not a text");
  EXPECT_EQ(error_of("{\"text\": \"a\"}\n[1]\n"), "line 2: not a JSON object");
  EXPECT_EQ(error_of("{\"text\": \"a\"}\n{\"text\": \"b\"\n"), "line 2: not valid JSON at byte 13");
  EXPECT_EQ(error_of("{\"text\": \"\xFF\"}\n"), "line 1: not valid JSON at byte 11");
  EXPECT_EQ(error_of("{\"text\": \"a\", \"n\": 1e999}\n"), "line 1: a number that does not fit");
}

TEST_F(JsonLinesTest, CountsLinesFromTheTopOfAFileThatIsCutIntoUnits) {
  std::string words = random_text(100, 1);
  std::replace(words.begin(), words.end(), '\n', ' ');
  std::string text;
  for (int i = 1; i <= 40'000; ++i) {
    text += i == 39'812 ? "{\"title\": 1}\n" : "{\"text\": \"" + words + "\"}\n";
  }
  write_input("c.jsonl", text);
  for (const int world : {1, 3}) {
    EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { pack_on_ranks(world, options_); }),
              (folder_ / "in/c.jsonl").string() + " line 39812: \"text\" is missing");
    EXPECT_FALSE(std::filesystem::exists(options_.out));
  }
}

TEST_F(JsonLinesTest, KeepsEveryLineOnceWhereverTheFileIsCut) {
  std::vector<std::string> expected;
  std::string text;
  for (std::uint64_t i = 0; text.size() < 3'500'000; ++i) {
    // Lengths from one byte to longer than what is read at a time.
    const std::size_t bytes = i % 500 == 499 ? 1'300'000 : 1 + mix64(i) % 3000;
    expected.emplace_back(bytes, static_cast<char>('a' + i % 26));
    text += "{\"text\":\"" + expected.back() + "\"}\n";
  }
  write_input("c.jsonl", text);
  pack_on_ranks(2, options_);
  EXPECT_GE(Dataset::open(options_.out / "train").info().files.size(), 3U);
  EXPECT_EQ(documents_of(options_.out / "train"), expected);
}

TEST_F(JsonLinesTest, RefusesALineLongerThanTheMemoryItMayUse) {
  options_.memory_mib = 1;
  EXPECT_EQ(error_of("{\"text\": \"a\"}\n{\"text\": \"" + std::string(5 << 20, 'x') + "\"}\n"),
            "line 2: longer than 1 MiB; raise --memory");
}

// The limit has to hold where splits are chosen, before anything is packed: a line may have no end.
TEST_F(JsonLinesTest, RefusesALineLongerThanTheMemoryBeforePackingBegins) {
  options_.memory_mib = 1;
  write_input("c.jsonl", "{\"text\": \"a\"}\n\n" + std::string(5 << 20, 'x'));
  EXPECT_EQ(
      message_of_error(ErrorCode::kUsage, [&] { static_cast<void>(make_plan(options_, find_inputs(options_), 256)); }),
      (folder_ / "in/c.jsonl").string() + " line 3: longer than 1 MiB; raise --memory");
}

TEST_F(JsonLinesTest, SplitsFewLinesSoThatNoSplitIsEmpty) {
  options_.split = {0.9, 0.05, 0.05};
  write_input("c.jsonl", "{\"text\": \"one\"}\n{\"text\": \"two\"}\n{\"text\": \"three\"}\n");
  pack(options_, {}, {});
  std::vector<std::string> all;
  for (const char* split : {"train", "valid", "test"}) {
    const auto documents = documents_of(options_.out / split);
    EXPECT_EQ(documents.size(), 1U);
    all.insert(all.end(), documents.begin(), documents.end());
  }
  EXPECT_THAT(all, testing::UnorderedElementsAre("one", "two", "three"));
}

TEST_F(JsonLinesTest, CountsEmptyTextsForNothingWhenItChoosesSplits) {
  options_.split = {0.5, 0.5};
  std::string text = "{\"text\": \"one\"}\n{\"text\": \"two\"}\n";
  for (int i = 0; i < 50; ++i) {
    text += "{\"text\": \"\"}\n";
  }
  write_input("c.jsonl", text);
  pack(options_, {}, {});
  std::vector<std::string> all = documents_of(options_.out / "train");
  EXPECT_EQ(all.size(), 1U);
  for (const std::string& document : documents_of(options_.out / "valid")) {
    all.push_back(document);
  }
  EXPECT_THAT(all, testing::UnorderedElementsAre("one", "two"));
  EXPECT_EQ(error_of("{\"text\": \"\"}\n{\"text\": \"a\"}\n", folder_ / "short"),
            "line 2: a document of 1 bytes is too short to be split into 2 parts; see --split");
  write_input("c.jsonl", "{\"text\": \"\"}\n\n{\"text\": \"\"}\n");
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { pack(options_, {}, {}); }),
            "the input is empty: " + (folder_ / "in/c.jsonl").string() + " holds no document");
}

TEST_F(JsonLinesTest, GivesTheSameFilesOnAnyNumberOfRanks) {
  std::string text;
  for (std::uint64_t i = 0; text.size() < 9'000'000; ++i) {
    std::string words = random_text(1 + mix64(i) % 4000, i);
    std::replace(words.begin(), words.end(), '\n', ' ');
    text += "{\"n\": " + std::to_string(i) + ", \"text\": \"" + words + "\"}\n";
  }
  write_input("c.jsonl", text);
  options_.split = {0.8, 0.1, 0.1};
  options_.tokenizer = "bpe:300";
  for (const int world : {1, 2, 3}) {
    options_.out = folder_ / ("out" + std::to_string(world));
    pack_on_ranks(world, options_);
    expect_same_files(folder_ / "out1", options_.out);
  }
  EXPECT_GE(Dataset::open(options_.out / "train").info().files.size(), 3U);
}

TEST_F(JsonLinesTest, SplitsOneLineByPositionAtALineOfItsText) {
  options_.split = {0.5, 0.5};
  write_input("c.jsonl", "{\"text\": \"12345\\n789\\nabcdef\"}\n");
  pack(options_, {}, {});
  EXPECT_EQ(documents_of(options_.out / "train"), (std::vector<std::string>{"12345\n"}));
  EXPECT_EQ(documents_of(options_.out / "valid"), (std::vector<std::string>{"789\nabcdef"}));
}

}  // namespace
}  // namespace lockstep
