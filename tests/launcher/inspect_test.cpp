#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/file.h"
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

TEST(InspectTest, PrintsJsonForPrograms) {
  const TemporaryFolder folder;
  write_safetensors(folder / "model.safetensors");
  const ProcessResult result = inspect(folder.path(), {"--json"});  // a folder with a model in it
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const auto json = nlohmann::json::parse(result.out);
  EXPECT_EQ(json.at("what"), "safetensors");
  EXPECT_EQ(json.at("values"), 8);
  EXPECT_EQ(json.at("metadata").at("format"), "pt");
  EXPECT_EQ(json.at("tensors").at(0).at("shape"), (std::vector<int>{3, 2}));
}

TEST(InspectTest, RefusesWhatItCannotRead) {
  const TemporaryFolder folder;
  const ProcessResult none = inspect(folder / "none");
  EXPECT_EQ(none.exit_code, 2);
  EXPECT_EQ(none.err, "lockstep inspect: " + (folder / "none").string() + " does not exist\n");

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
