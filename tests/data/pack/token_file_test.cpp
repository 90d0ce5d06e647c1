#include "data/pack/token_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "tests/data/pack/pack_fixture.h"
#include "tests/support/error_matcher.h"

namespace lockstep {
namespace {

constexpr std::uint16_t kEnd = 256;

// A .bin file as llm.c writes it.
std::string bin_of(const std::vector<std::uint16_t>& ids, std::int32_t magic = 20240520, std::int32_t version = 1) {
  std::string file(1024, '\0');
  const auto count = static_cast<std::int32_t>(ids.size());
  std::memcpy(file.data(), &magic, 4);
  std::memcpy(file.data() + 4, &version, 4);
  std::memcpy(file.data() + 8, &count, 4);
  file.append(reinterpret_cast<const char*>(ids.data()), ids.size() * 2);
  return file;
}

class TokenFileTest : public PackTest {
 protected:
  TokenFileTest() { options_.format = PackFormat::kTokens; }

  std::string error_of(const std::string& file) {
    write_input("t.bin", file);
    const std::string message = message_of_error(ErrorCode::kUsage, [&] { pack(options_, {}, {}); });
    EXPECT_FALSE(std::filesystem::exists(options_.out)) << "something was left behind";
    return message.substr(message.find("t.bin"));
  }
};

TEST_F(TokenFileTest, MakesDocumentsOfTheRunsBetweenEndOfTextIds) {
  // As llm.c does it, with the end-of-text id before each document; and two of them in a row.
  write_input("t.bin", bin_of({kEnd, 'a', 'b', kEnd, 'c', kEnd, kEnd, 'd', 'e'}));
  pack(options_, {}, {});
  EXPECT_EQ(documents_of(options_.out / "train"), (std::vector<std::string>{"ab", "c", "de"}));
}

TEST_F(TokenFileTest, KeepsEveryDocumentOnceWhereverTheFileIsCut) {
  std::vector<std::uint16_t> ids;
  std::vector<std::string> expected;
  for (std::uint64_t i = 0; ids.size() < 2'000'000; ++i) {
    const std::size_t length = i % 100 == 99 ? 700'000 : 1 + mix64(i) % 2000;
    expected.emplace_back(length, static_cast<char>('a' + i % 26));
    ids.insert(ids.end(), expected.back().begin(), expected.back().end());
    ids.push_back(kEnd);
  }
  write_input("t.bin", bin_of(ids));
  pack_on_ranks(2, options_);
  EXPECT_GE(Dataset::open(options_.out / "train").info().files.size(), 3U);
  EXPECT_EQ(documents_of(options_.out / "train"), expected);
}

TEST_F(TokenFileTest, SplitsOneDocumentByPosition) {
  options_.split = {0.6, 0.2, 0.2};
  write_input("t.bin", bin_of({kEnd, '0', '1', '2', '3', '4', '5', '6', '7', '8', '9'}));
  pack(options_, {}, {});
  EXPECT_EQ(documents_of(options_.out / "train"), (std::vector<std::string>{"012345"}));
  EXPECT_EQ(documents_of(options_.out / "valid"), (std::vector<std::string>{"67"}));
  EXPECT_EQ(documents_of(options_.out / "test"), (std::vector<std::string>{"89"}));
}

TEST_F(TokenFileTest, SaysWhatIsWrongWithAHeader) {
  EXPECT_EQ(error_of("short"),
            "t.bin is not a file of tokens: it does not begin with a header of 1024 bytes and the number 20240520");
  EXPECT_EQ(error_of(bin_of({1, 2}, 20240801)),
            "t.bin is not a file of tokens: it does not begin with a header of 1024 bytes and the number 20240520");
  EXPECT_EQ(error_of(bin_of({1, 2}, 20240520, 2)), "t.bin has version 2, expected 1");
  EXPECT_EQ(error_of(bin_of({1, 2, 3}).substr(0, 1028)),
            "t.bin says it has 3 tokens, but 4 bytes of them follow the header");
  EXPECT_EQ(error_of(bin_of({kEnd, kEnd})), "t.bin holds no document");
}

TEST_F(TokenFileTest, NamesAnIdOutsideTheVocabulary) {
  EXPECT_EQ(error_of(bin_of({kEnd, 1, 2, 300, 4})), "t.bin token 3 is 300, the tokenizer's vocabulary has 257 ids");
}

TEST_F(TokenFileTest, NeedsTheTokenizerThatMadeTheTokens) {
  options_.tokenizer = "bpe:300";
  write_input("t.bin", bin_of({1}));
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { pack(options_, {}, {}); }),
            "--format tokens needs the tokenizer that made the tokens, not bpe:300");
}

}  // namespace
}  // namespace lockstep
