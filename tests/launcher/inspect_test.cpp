#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/progress.h"
#include "tests/data/small_dataset.h"
#include "tests/support/process.h"
#include "tests/support/temporary_folder.h"
#include "trainer/formats/safetensors.h"

namespace lockstep {
namespace {

ProcessResult inspect(const std::filesystem::path& path, const std::vector<std::string>& options = {}) {
  std::vector<std::string> command = {LOCKSTEP_PROGRAM, "inspect", path.string()};
  command.insert(command.end(), options.begin(), options.end());
  return run_process(command);
}

void write_safetensors(const std::filesystem::path& path) {
  const SafetensorsLayout layout({{.name = "wte.weight", .type = SafetensorsType::kF32, .shape = {3, 2}},
                                  {.name = "ln.bias", .type = SafetensorsType::kBF16, .shape = {2}}},
                                 {{"format", "pt"}});
  write_file_atomic(path, layout.head + std::string(layout.data_bytes, '\0'));
}

TEST(InspectTest, ListsTheTensorsOfASafetensorsFile) {
  const TemporaryFolder folder;
  write_safetensors(folder / "model.safetensors");
  const ProcessResult result = inspect(folder / "model.safetensors");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, testing::HasSubstr("tensors      2, 8 values"));
  EXPECT_THAT(result.out, testing::HasSubstr("  F32   [3, 2]           wte.weight\n"));
  EXPECT_THAT(result.out, testing::HasSubstr("  BF16  [2]              ln.bias\n"));
}

TEST(InspectTest, ListsTheShardsOfAModel) {
  const TemporaryFolder folder;
  for (const char* name : {"model-00001-of-00002", "model-00002-of-00002"}) {
    const SafetensorsLayout layout({{.name = name, .type = SafetensorsType::kF32, .shape = {4}}}, {});
    write_file_atomic(folder / (name + std::string(".safetensors")),
                      layout.head + std::string(layout.data_bytes, '\0'));
  }
  write_file_atomic(folder / "model.safetensors.index.json",
                    R"({"weight_map": {"model-00001-of-00002": "model-00001-of-00002.safetensors",
                                       "model-00002-of-00002": "model-00002-of-00002.safetensors"}})");
  const ProcessResult result = inspect(folder.path());
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, testing::HasSubstr("[4]              model-00001-of-00002\n\nsafetensors  "));
  EXPECT_THAT(result.out, testing::HasSubstr("[4]              model-00002-of-00002\n"));
  const auto json = nlohmann::json::parse(inspect(folder.path(), {"--json"}).out);
  EXPECT_EQ(json.at("what"), "model");
  EXPECT_EQ(json.at("files").size(), 2U);
  EXPECT_EQ(json.at("files").at(1).at("tensors").at(0).at("name"), "model-00002-of-00002");
}

TEST(InspectTest, DescribesADataset) {
  const TemporaryFolder folder;
  const DatasetInfo info = write_small_dataset(folder / "valid", counting_tokens(100), {60, 40});
  const ProcessResult result = inspect(folder / "valid");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out, "dataset      " + (folder / "valid").string() +
                            "\nkind         text"
                            "\ntokenizer    counting, 60000 tokens, fingerprint 0123456789abcdef0123456789abcdef"
                            "\ntokens       100 (u16)"
                            "\ndocuments    2"
                            "\nfile         00000.h5  60 tokens, 1 documents, " +
                            format_bytes(info.files[0].size_bytes) +
                            "\nfile         00001.h5  40 tokens, 1 documents, " +
                            format_bytes(info.files[1].size_bytes) + "\n");
  const auto json = nlohmann::json::parse(inspect(folder / "valid", {"--json", "--verify"}).out);
  EXPECT_EQ(json.at("what"), "dataset");
  EXPECT_EQ(json.at("tokens"), 100);
  EXPECT_EQ(json.at("tokenizer").at("vocabulary_size"), 60000);
  EXPECT_EQ(json.at("files").at(1).at("xxh3_128"), info.files[1].xxh3_128);
  EXPECT_EQ(json.at("verified"), true);
  // The folder above, as pack leaves it: here with one split, and a name that is not UTF-8.
  std::filesystem::rename(folder / "valid", folder / "test");
  EXPECT_THAT(inspect(folder.path()).out, testing::HasSubstr("tokens       100 (u16)"));
  std::filesystem::create_directory(folder / "\xff");
  std::filesystem::rename(folder / "test", folder / "\xff/test");
  const auto splits = nlohmann::json::parse(inspect(folder / "\xff", {"--json"}).out);
  EXPECT_EQ(splits.at("what"), "splits");
  EXPECT_EQ(splits.at("splits").at("test").at("documents"), 2);
  EXPECT_EQ(splits.at("path"), (folder / "\xEF\xBF\xBD").string());
}

TEST(InspectTest, FindsDamageInADataset) {
  const TemporaryFolder folder;
  write_small_dataset(folder / "d", counting_tokens(100), {60, 40});
  const std::filesystem::path shard = folder / "d/00001.h5";
  File file = File::open_or_create(shard);
  std::array<std::byte, 1> byte = {};
  const std::uint64_t last = file.size() - 1;
  file.read_exactly(last, byte);
  byte[0] ^= std::byte{1};
  file.write(last, byte);
  EXPECT_EQ(inspect(folder / "d").exit_code, 0) << "a flipped bit shows only when all is read";
  const ProcessResult flipped = inspect(folder / "d", {"--verify"});
  EXPECT_EQ(flipped.exit_code, 2);
  EXPECT_THAT(flipped.err, testing::StartsWith("lockstep inspect: " + shard.string() + ": its xxh3-128 is "));
  std::filesystem::resize_file(shard, last);
  const ProcessResult cut = inspect(folder / "d");
  EXPECT_EQ(cut.exit_code, 2);
  EXPECT_EQ(cut.err,
            fmt::format("lockstep inspect: {}: {} bytes, dataset.json says {}\n", shard.string(), last, last + 1));
  const ProcessResult one_shard = inspect(folder / "d/00000.h5");
  EXPECT_EQ(one_shard.exit_code, 2);
  EXPECT_EQ(one_shard.err, "lockstep inspect: " + (folder / "d/00000.h5").string() +
                               " is an HDF5 file; to inspect a dataset, give its folder\n");
}

TEST(InspectTest, FailsWhenNobodyCanReadItsResult) {
  const TemporaryFolder folder;
  write_safetensors(folder / "model.safetensors");
  const ProcessResult result = run_process(
      {"/bin/sh", "-c",
       std::string(LOCKSTEP_PROGRAM) + " inspect " + (folder / "model.safetensors").string() + " > /dev/full"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_EQ(result.err, "lockstep inspect: write to stdout: No space left on device\n");
}

TEST(InspectTest, PrintsJsonForPrograms) {
  const TemporaryFolder folder;
  write_safetensors(folder / "model.safetensors");
  const ProcessResult result = inspect(folder.path(), {"--json"});  // a folder with a model in it
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const auto json = nlohmann::json::parse(result.out);
  EXPECT_EQ(json.at("what"), "model");
  const auto& file = json.at("files").at(0);
  EXPECT_EQ(file.at("what"), "safetensors");
  EXPECT_EQ(file.at("values"), 8);
  EXPECT_EQ(file.at("metadata").at("format"), "pt");
  EXPECT_EQ(file.at("tensors").at(0).at("shape"), (std::vector<int>{3, 2}));
}

TEST(InspectTest, RefusesWhatItCannotRead) {
  const TemporaryFolder folder;
  const ProcessResult none = inspect(folder / "none");
  EXPECT_EQ(none.exit_code, 2);
  EXPECT_EQ(none.err, "lockstep inspect: " + (folder / "none").string() + " does not exist\n");
  const std::string long_name = (folder / std::string(300, 'x')).string();
  EXPECT_EQ(inspect(long_name).exit_code, 2);
  EXPECT_EQ(inspect(long_name).err, "lockstep inspect: " + long_name + ": File name too long\n");

  const ProcessResult empty = inspect(folder.path());
  EXPECT_EQ(empty.exit_code, 2);
  EXPECT_THAT(empty.err, testing::HasSubstr("is no dataset (dataset.json), checkpoint (manifest.json)"));

  write_file_atomic(folder / "garbage.safetensors", std::string(100, '\xff'));
  const ProcessResult garbage = inspect(folder / "garbage.safetensors");
  EXPECT_EQ(garbage.exit_code, 2);
  EXPECT_THAT(garbage.err, testing::HasSubstr("garbage.safetensors"));
  EXPECT_EQ(std::count(garbage.err.begin(), garbage.err.end(), '\n'), 1);
}

TEST(InspectTest, ReportsADamagedManifestOfACheckpoint) {
  const TemporaryFolder folder;
  write_file_atomic(folder / "manifest.json", "{\"version\": 1}");
  const ProcessResult result = inspect(folder.path());
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, testing::HasSubstr("manifest.json"));
}

}  // namespace
}  // namespace lockstep
