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

// A .bin file as llm.c writes it: uint16 ids for GPT-2, uint32 ids for Llama 3.
template <typename Id>
std::string bin_of_ids(const std::vector<Id>& ids, std::int32_t magic, std::int32_t version) {
  std::string file(1024, '\0');
  const auto count = static_cast<std::int32_t>(ids.size());
  std::memcpy(file.data(), &magic, 4);
  std::memcpy(file.data() + 4, &version, 4);
  std::memcpy(file.data() + 8, &count, 4);
  file.append(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(Id));
  return file;
}
std::string bin_of(const std::vector<std::uint16_t>& ids, std::int32_t magic = 20240520, std::int32_t version = 1) {
  return bin_of_ids(ids, magic, version);
}
std::string wide_bin_of(const std::vector<std::uint32_t>& ids, std::int32_t version = 7) {
  return bin_of_ids(ids, 20240801, version);
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

TEST_F(TokenFileTest, ReadsIdsOfFourBytes) {
  write_input("t.bin", wide_bin_of({kEnd, 'a', 'b', kEnd, 'c'}));
  write_input("u.bin", bin_of({'d', kEnd}));
  pack(options_, {}, {});
  EXPECT_EQ(documents_of(options_.out / "train"), (std::vector<std::string>{"ab", "c", "d"}));
}

TEST_F(TokenFileTest, GivesTheSameFilesFromIdsOfBothWidthsOnAnyNumberOfRanks) {
  std::vector<std::uint16_t> ids;
  for (std::uint64_t i = 0; ids.size() < 1'500'000; ++i) {
    ids.insert(ids.end(), 1 + mix64(i) % 3000, static_cast<std::uint16_t>('a' + i % 26));
    ids.push_back(kEnd);
  }
  write_input("t.bin", bin_of(ids));
  options_.split = {0.8, 0.1, 0.1};
  for (const int world : {1, 2, 3}) {
    options_.out = folder_ / ("out" + std::to_string(world));
    pack_on_ranks(world, options_);
    expect_same_files(folder_ / "out1", options_.out);
  }
  std::filesystem::remove(folder_ / "in/t.bin");
  write_input("t.bin", wide_bin_of({ids.begin(), ids.end()}));
  options_.out = folder_ / "wide";
  pack_on_ranks(2, options_);
  std::size_t documents = 0;
  for (const char* split : {"train", "valid", "test"}) {
    const auto all = documents_of(options_.out / split);
    documents += all.size();
    for (const std::string& document : all) {
      ASSERT_EQ(document, std::string(document.size(), document[0])) << "ids of two documents";
    }
  }
  EXPECT_EQ(documents, static_cast<std::size_t>(std::count(ids.begin(), ids.end(), kEnd)));
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
  for (const std::string& file : {bin_of(ids), wide_bin_of({ids.begin(), ids.end()})}) {
    write_input("t.bin", file);
    options_.out = folder_ / std::to_string(file.size());
    pack_on_ranks(2, options_);
    EXPECT_GE(Dataset::open(options_.out / "train").info().files.size(), 3U);
    EXPECT_EQ(documents_of(options_.out / "train"), expected);
  }
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
            "t.bin is not a file of tokens: it does not begin with a header of 1024 bytes and the number 20240520 or "
            "20240801");
  EXPECT_EQ(error_of(bin_of({1, 2}, 20240521)),
            "t.bin is not a file of tokens: it does not begin with a header of 1024 bytes and the number 20240520 or "
            "20240801");
  EXPECT_EQ(error_of(bin_of({1, 2}, 20240520, 2)), "t.bin has version 2, expected 1");
  EXPECT_EQ(error_of(wide_bin_of({1, 2}, 1)), "t.bin has version 1, expected 7");
  EXPECT_EQ(error_of(bin_of({1, 2, 3}).substr(0, 1028)),
            "t.bin says it has 3 tokens of 2 bytes, but 4 bytes follow the header");
  EXPECT_EQ(error_of(wide_bin_of({1, 2}).substr(0, 1028)),
            "t.bin says it has 2 tokens of 4 bytes, but 4 bytes follow the header");
  EXPECT_EQ(error_of(bin_of({kEnd, kEnd})), "t.bin holds no document");
}

TEST_F(TokenFileTest, NamesAnIdOutsideTheVocabulary) {
  EXPECT_EQ(error_of(bin_of({kEnd, 1, 2, 300, 4})), "t.bin token 3 is 300, the tokenizer's vocabulary has 257 ids");
  EXPECT_EQ(error_of(wide_bin_of({kEnd, 1, 65536 + 'a'})),
            "t.bin token 2 is 65633, the tokenizer's vocabulary has 257 ids");
}

TEST_F(TokenFileTest, NeedsTheTokenizerThatMadeTheTokens) {
  options_.tokenizer = "bpe:300";
  write_input("t.bin", bin_of({1}));
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { pack(options_, {}, {}); }),
            "--format tokens needs the tokenizer that made the tokens, not bpe:300");
}

}  // namespace
}  // namespace lockstep
