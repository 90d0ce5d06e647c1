#include "data/dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "base/file.h"
#include "data/hdf5_file.h"
#include "data/shard_writer.h"
#include "tests/data/small_dataset.h"
#include "tests/support/error_matcher.h"
#include "tests/support/temporary_folder.h"

namespace lockstep {
namespace {

using testing::HasSubstr;

DatasetInfo example_info() {
  DatasetInfo info;
  info.tokenizer = {"bytes", "b1a7", 257, 256};
  info.tokens = 30;
  info.documents = 3;
  info.files = {{"00000.h5", 10, 2, 1234, std::string(32, 'a')}, {"00001.h5", 20, 1, 99, std::string(32, '0')}};
  return info;
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

std::string error_of_json(const std::string& from, const std::string& to) {
  return message_of_error(ErrorCode::kCorrupt, [&] {
    static_cast<void>(parse_dataset_json(replaced(to_dataset_json(example_info()), from, to), "d/dataset.json"));
  });
}

TEST(DatasetJsonTest, ReadsBackWhatItWrites) {
  EXPECT_EQ(parse_dataset_json(to_dataset_json(example_info()), "x"), example_info());
  DatasetInfo wide = example_info();
  wide.tokenizer.vocabulary_size = 128'256;
  EXPECT_EQ(wide.token_dtype(), DType::kU32);
  EXPECT_EQ(parse_dataset_json(to_dataset_json(wide), "x"), wide);
}

TEST(DatasetJsonTest, TakesTheNarrowTypeForUpTo65536Ids) {
  DatasetInfo info = example_info();
  info.tokenizer.vocabulary_size = 65'536;
  EXPECT_EQ(info.token_dtype(), DType::kU16);
  info.tokenizer.vocabulary_size = 65'537;
  EXPECT_EQ(info.token_dtype(), DType::kU32);
}

TEST(DatasetJsonTest, RefusesAnotherVersionNamingBoth) {
  EXPECT_EQ(error_of_json("\"version\": 1", "\"version\": 2"),
            "d/dataset.json: version 2, this program reads version 1");
}

TEST(DatasetJsonTest, NamesWhatIsWrongAndWhatWasExpected) {
  EXPECT_EQ(error_of_json("lockstep-dataset", "parquet"),
            "d/dataset.json: format is \"parquet\", expected \"lockstep-dataset\"");
  EXPECT_EQ(error_of_json("\"kind\": \"text\"", "\"kind\": \"sound\""),
            "d/dataset.json: kind is \"sound\", expected \"text\"");
  EXPECT_EQ(error_of_json("\"fingerprint\"", "\"finger\""), "d/dataset.json: tokenizer.fingerprint is missing");
  EXPECT_EQ(error_of_json("\"tokens\": 10", "\"tokens\": -1"),
            "d/dataset.json: files[0].tokens is -1, expected a whole number from 1 to 1152921504606846976");
  EXPECT_EQ(error_of_json("\"tokens\": 10", "\"tokens\": 11"),
            "d/dataset.json: says 30 tokens and 3 documents, its files do not add up to that");
  EXPECT_EQ(error_of_json("00001.h5", "../00001.h5"),
            "d/dataset.json: files[1].name is not the name of a file in the dataset's folder");
  EXPECT_EQ(error_of_json("\"end_of_text\": 256", "\"end_of_text\": 257"),
            "d/dataset.json: tokenizer.end_of_text is 257, expected a whole number from 0 to 256");
  EXPECT_EQ(error_of_json("\"dtype\": \"uint16\"", "\"dtype\": \"uint32\""),
            "d/dataset.json: dtype is \"uint32\", expected \"uint16\"");
  EXPECT_EQ(error_of_json("aaaa", "AAAA"), "d/dataset.json: files[0].xxh3_128 is not 32 lower-case hexadecimal digits");
}

TEST(DatasetJsonTest, RefusesWhatIsNoJsonOrNotThisJson) {
  for (const std::string text :
       {"", "{", "null", "[]", "{}", "{\"format\": 3}", "\xff\xfe", "{\"format\": \"lockstep-dataset\"}"}) {
    static_cast<void>(message_of_error(ErrorCode::kCorrupt, [&] { static_cast<void>(parse_dataset_json(text, "x")); }));
  }
}

// What fuzzing found, and what it started from: an Error, or something that is written and read back as the same.
TEST(DatasetJsonTest, SurvivesTheFuzzingCorpus) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(FUZZ_CORPUS)) {
    ++files;
    try {
      const DatasetInfo info = parse_dataset_json(read_file(entry.path()), "x");
      EXPECT_EQ(parse_dataset_json(to_dataset_json(info), "x"), info) << entry.path();
    } catch (const Error& error) {
      EXPECT_EQ(static_cast<int>(error.code()), static_cast<int>(ErrorCode::kCorrupt)) << entry.path();
    }
  }
  EXPECT_GE(files, 7);
}

class DatasetTest : public testing::Test {
 protected:
  DatasetTest() : info_(write_small_dataset(folder_.path(), counting_tokens(1000), {300, 1, 699})) {}

  std::string error_of_open(ErrorCode code) {
    return message_of_error(code, [&] { static_cast<void>(Dataset::open(folder_.path())); });
  }
  // Replaces the second shard by one with the given contents, and its size in dataset.json.
  void replace_shard(const std::function<void(Hdf5File&)>& fill) {
    const std::filesystem::path path = folder_ / "00001.h5";
    Hdf5File file = Hdf5File::create(path);
    fill(file);
    file.close();
    info_.files[1].size_bytes = std::filesystem::file_size(path);
    write_file_atomic(folder_ / "dataset.json", to_dataset_json(info_));
  }

  TemporaryFolder folder_;
  DatasetInfo info_;
};

TEST_F(DatasetTest, ReadsAnyRangeAcrossShards) {
  Dataset dataset = Dataset::open(folder_.path());
  EXPECT_EQ(dataset.info(), info_);
  for (const std::uint64_t begin : {0U, 250U, 299U, 300U, 301U, 600U, 999U, 1000U}) {
    std::vector<std::int32_t> tokens(std::min<std::size_t>(120, 1000 - begin));
    dataset.read(begin, tokens);
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      ASSERT_EQ(tokens[i], static_cast<std::int32_t>(begin + i));
    }
  }
  EXPECT_EQ(dataset.document_offsets(), (std::vector<std::uint64_t>{0, 300, 301}));
  dataset.verify();
}

TEST_F(DatasetTest, HoldsWideIdsOfLargeVocabularies) {
  const TemporaryFolder folder;
  const std::vector<std::uint32_t> tokens = {0, 65'536, 128'255, 7};
  static_cast<void>(write_small_dataset(folder.path(), tokens, {4}, 128'256));
  Dataset dataset = Dataset::open(folder.path());
  std::vector<std::int32_t> read(4);
  dataset.read(0, read);
  EXPECT_EQ(read, (std::vector<std::int32_t>{0, 65'536, 128'255, 7}));
}

TEST_F(DatasetTest, RefusesARangeBeyondTheEnd) {
  Dataset dataset = Dataset::open(folder_.path());
  std::vector<std::int32_t> tokens(2);
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { dataset.read(999, tokens); }),
            "data: tokens 999 to 1001 were asked for, " + folder_.path().string() + " has 1000");
}

TEST_F(DatasetTest, SaysThatAFolderIsNoDataset) {
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { static_cast<void>(Dataset::open(folder_ / "nowhere")); }),
            "data: " + (folder_ / "nowhere").string() + " is not a dataset: there is no " +
                (folder_ / "nowhere/dataset.json").string());
}

TEST_F(DatasetTest, NamesAMissingFile) {
  std::filesystem::remove(folder_ / "00002.h5");
  EXPECT_EQ(error_of_open(ErrorCode::kCorrupt),
            (folder_ / "00002.h5").string() + ": No such file or directory, but dataset.json lists it");
}

TEST_F(DatasetTest, NamesATruncatedFileAndBothSizes) {
  const std::string size = std::to_string(info_.files[0].size_bytes);
  std::filesystem::resize_file(folder_ / "00000.h5", 1000);
  EXPECT_EQ(error_of_open(ErrorCode::kCorrupt),
            (folder_ / "00000.h5").string() + ": 1000 bytes, dataset.json says " + size);
}

TEST_F(DatasetTest, NamesAForeignFileOfTheRightSize) {
  write_file_atomic(folder_ / "00000.h5", std::string(info_.files[0].size_bytes, 'x'));
  EXPECT_EQ(error_of_open(ErrorCode::kCorrupt), "open " + (folder_ / "00000.h5").string() + ": not an HDF5 file");
}

TEST_F(DatasetTest, NamesTheCountsThatDiffer) {
  replace_shard([](Hdf5File& file) {
    file.create_array("tokens", DType::kU16, 4);
    file.append("tokens", std::vector<std::uint16_t>{1, 2, 3});
    file.create_array("document_offsets", DType::kU64, 1);
  });
  EXPECT_EQ(error_of_open(ErrorCode::kCorrupt),
            (folder_ / "00001.h5").string() + ": /tokens has 3 elements, dataset.json says 1");
}

TEST_F(DatasetTest, NamesTheTypesThatDiffer) {
  replace_shard([](Hdf5File& file) {
    file.create_array("tokens", DType::kU32, 4);
    file.append("tokens", std::vector<std::uint32_t>{1});
    file.create_array("document_offsets", DType::kU64, 1);
  });
  EXPECT_EQ(error_of_open(ErrorCode::kCorrupt), (folder_ / "00001.h5").string() + ": /tokens holds u32, expected u16");
}

TEST_F(DatasetTest, MissesTheDocumentOffsets) {
  replace_shard([](Hdf5File& file) {
    file.create_array("tokens", DType::kU16, 4);
    file.append("tokens", std::vector<std::uint16_t>{1});
  });
  EXPECT_EQ(error_of_open(ErrorCode::kCorrupt),
            "read document_offsets of " + (folder_ / "00001.h5").string() + ": there is no such dataset");
}

TEST_F(DatasetTest, RefusesIdsOutsideTheVocabulary) {
  info_.tokenizer.vocabulary_size = 500;
  write_file_atomic(folder_ / "dataset.json", to_dataset_json(info_));
  Dataset dataset = Dataset::open(folder_.path());
  std::vector<std::int32_t> tokens(300);
  dataset.read(200, tokens);
  EXPECT_EQ(message_of_error(ErrorCode::kCorrupt, [&] { dataset.read(250, tokens); }),
            (folder_ / "00002.h5").string() + ": token 248 is 549, the vocabulary has 500 ids");
}

TEST_F(DatasetTest, VerifyFindsAFlippedBit) {
  const std::filesystem::path path = folder_ / "00002.h5";
  const std::uint64_t middle = std::filesystem::file_size(path) - 100;
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(static_cast<std::streamoff>(middle));
  const char byte = static_cast<char>(file.get());
  file.seekp(static_cast<std::streamoff>(middle));
  file.put(static_cast<char>(byte ^ 1));
  file.close();
  const Dataset dataset = Dataset::open(folder_.path());
  EXPECT_THAT(message_of_error(ErrorCode::kCorrupt, [&] { dataset.verify(); }),
              testing::AllOf(HasSubstr("00002.h5: its xxh3-128 is "), HasSubstr(info_.files[2].xxh3_128)));
}

TEST_F(DatasetTest, ReadsManyMoreShardsThanItHoldsOpen) {
  const TemporaryFolder folder;
  static_cast<void>(write_small_dataset(folder.path(), counting_tokens(200), std::vector<std::size_t>(100, 2)));
  Dataset dataset = Dataset::open(folder.path());
  for (int round = 0; round < 2; ++round) {
    std::vector<std::int32_t> tokens(200);
    dataset.read(0, tokens);
    EXPECT_EQ(tokens[199], 199);
    EXPECT_EQ(tokens[0], 0);
  }
}

TEST(ShardWriterTest, WritesLongAndShortArraysInChunksThatFit) {
  const TemporaryFolder folder;
  constexpr std::size_t kTokens = ShardWriter::kTokenChunk + 5;
  ShardWriter writer(folder / "long.h5", DType::kU16);
  for (std::size_t i = 0; i < ShardWriter::kOffsetChunk + 1; ++i) {
    writer.begin_document();
    writer.append(counting_tokens(1));
  }
  writer.append(std::vector<std::uint32_t>(kTokens - ShardWriter::kOffsetChunk - 1, 9));
  writer.close();
  EXPECT_EQ(writer.tokens(), kTokens);
  EXPECT_EQ(writer.documents(), ShardWriter::kOffsetChunk + 1);
  const Hdf5Array tokens = Hdf5File::open_to_read(folder / "long.h5").open_array("tokens");
  EXPECT_EQ(tokens.size(), kTokens);
  EXPECT_EQ(tokens.chunk(), ShardWriter::kTokenChunk);
  std::vector<std::uint16_t> last(6);
  tokens.read(kTokens - 6, std::span(last));
  EXPECT_EQ(last, std::vector<std::uint16_t>(6, 9));
  const Hdf5Array offsets = Hdf5File::open_to_read(folder / "long.h5").open_array("document_offsets");
  std::vector<std::uint64_t> read(offsets.size());
  offsets.read(0, std::span(read));
  EXPECT_EQ(read.back(), ShardWriter::kOffsetChunk);

  ShardWriter empty(folder / "empty.h5", DType::kU32);
  empty.close();
  EXPECT_EQ(Hdf5File::open_to_read(folder / "empty.h5").open_array("tokens").size(), 0U);
}

}  // namespace
}  // namespace lockstep
