#include "base/file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <filesystem>
#include <functional>
#include <string>

#include "base/error.h"
#include "tests/support/temporary_folder.h"

namespace lockstep {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

void expect_error(ErrorCode code, const std::string& part, const std::function<void()>& action) {
  try {
    action();
    ADD_FAILURE() << "no error; expected one with " << part;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code);
    EXPECT_THAT(error.what(), testing::HasSubstr(part));
  }
}

TEST(FileTest, ReadsAtAnyPositionWhatWasWrittenAtAnyPosition) {
  const TemporaryFolder folder;
  {
    const File file = File::create(folder / "a");
    file.write(4, bytes_of("step"));
    file.write(0, bytes_of("lock"));
    file.sync();
    EXPECT_EQ(file.size(), 8U);
  }
  const File file = File::open_to_read(folder / "a");
  std::array<char, 4> text = {};
  file.read_exactly(2, std::as_writable_bytes(std::span(text)));
  EXPECT_EQ(std::string(text.data(), 4), "ckst");
  EXPECT_EQ(file.read_some(6, std::as_writable_bytes(std::span(text))), 2U);
  EXPECT_EQ(file.read_some(100, std::as_writable_bytes(std::span(text))), 0U);
}

TEST(FileTest, CallsAFileThatEndsTooEarlyCorrupt) {
  const TemporaryFolder folder;
  write_file_atomic(folder / "short", "abc");
  std::array<std::byte, 4> bytes = {};
  expect_error(ErrorCode::kCorrupt, "short: the file ends at byte 3, expected 4 bytes",
               [&] { File::open_to_read(folder / "short").read_exactly(0, bytes); });
}

TEST(FileTest, NamesThePathOfWhatCannotBeOpened) {
  const TemporaryFolder folder;
  expect_error(ErrorCode::kIo, "open " + (folder / "none").string() + ": No such file",
               [&] { (void)read_file(folder / "none"); });
  expect_error(ErrorCode::kIo, "not a regular file", [&] { (void)read_file(folder.path()); });
  expect_error(ErrorCode::kIo, "create " + (folder / "none/x").string(),
               [&] { (void)File::create(folder / "none/x"); });
}

TEST(FileTest, ReplacesAFileWholeAndLeavesNothingElse) {
  const TemporaryFolder folder;
  write_file_atomic(folder / "a.json", "first, and longer");
  write_file_atomic(folder / "a.json", "second");
  EXPECT_EQ(read_file(folder / "a.json"), "second");
  EXPECT_FALSE(std::filesystem::exists(folder / "a.json.partial"));
  write_file_atomic(folder / "empty", "");
  EXPECT_EQ(read_file(folder / "empty"), "");
}

TEST(FileTest, SaysThatADiskIsFull) {
  if (!std::filesystem::exists("/dev/full")) {
    GTEST_SKIP() << "no /dev/full here";
  }
  expect_error(ErrorCode::kNoSpace, "write /dev/full", [] { File::create("/dev/full").write(0, bytes_of("x")); });
}

TEST(FileTest, SyncsTheCurrentFolderForAnEmptyPath) { EXPECT_NO_THROW(sync_folder("")); }

TEST(FileTest, PlacesAFileWhereItsNameLeads) {
  const TemporaryFolder folder;
  const std::filesystem::path file = folder / "file";
  EXPECT_EQ(place_of_file("--out", file), file);
  write_file_atomic(file, "abc");
  EXPECT_EQ(place_of_file("--out", file), file);
  std::filesystem::create_symlink("file", folder / "link");
  std::filesystem::create_symlink("nothing-yet", folder / "ahead");
  EXPECT_EQ(place_of_file("--out", folder / "link"), file);
  EXPECT_EQ(place_of_file("--out", folder / "ahead"), folder / "nothing-yet");
  std::filesystem::create_symlink(folder / "link", folder / "link-of-link");
  EXPECT_EQ(place_of_file("--out", folder / "link-of-link"), file);
  expect_error(ErrorCode::kUsage, "--out: /dev/null is there and no file, expected the name of a file",
               [] { static_cast<void>(place_of_file("--out", "/dev/null")); });
  expect_error(ErrorCode::kUsage, " is a folder, expected the name of a file",
               [&] { static_cast<void>(place_of_file("--out", folder.path())); });
}

}  // namespace
}  // namespace lockstep
