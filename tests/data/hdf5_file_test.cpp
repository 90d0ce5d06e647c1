#include "data/hdf5_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "base/file.h"
#include "tests/support/error_matcher.h"
#include "tests/support/temporary_folder.h"

#if defined(__SANITIZE_ADDRESS__)
// The library forgets some memory when a write fails.
extern "C" const char* __lsan_default_suppressions() { return "leak:libhdf5"; }
#endif

namespace lockstep {
namespace {

using testing::HasSubstr;

std::vector<std::uint16_t> ascending(std::size_t count) {
  std::vector<std::uint16_t> values(count);
  std::iota(values.begin(), values.end(), std::uint16_t{0});
  return values;
}

void write(const std::filesystem::path& path, const std::vector<std::uint16_t>& values, std::uint64_t chunk) {
  Hdf5File file = Hdf5File::create(path);
  file.create_array("values", DType::kU16, chunk);
  file.append("values", values);
  file.close();
}

TEST(Hdf5FileTest, ReadsBackWhatWasAppendedInPieces) {
  const TemporaryFolder folder;
  const auto values = ascending(1000);
  Hdf5File file = Hdf5File::create(folder / "a.h5");
  file.create_array("values", DType::kU16, 64);
  for (std::size_t at = 0; at < values.size();) {
    const std::size_t count = std::min<std::size_t>(at % 97 + 1, values.size() - at);
    file.append("values", std::span(values).subspan(at, count));
    at += count;
  }
  file.append("values", std::span<const std::uint16_t>());
  file.close();

  const Hdf5Array array = Hdf5File::open_to_read(folder / "a.h5").open_array("values");
  EXPECT_EQ(array.size(), 1000U);
  EXPECT_EQ(array.dtype(), DType::kU16);
  EXPECT_EQ(array.chunk(), 64U);
  std::vector<std::uint16_t> read(1000);
  array.read(0, std::span(read));
  EXPECT_EQ(read, values);
  for (const std::size_t begin : {0U, 1U, 63U, 64U, 65U, 500U, 998U}) {
    std::vector<std::uint16_t> part(std::min<std::size_t>(130, 1000 - begin));
    array.read(begin, std::span(part));
    EXPECT_EQ(part, std::vector<std::uint16_t>(values.begin() + static_cast<std::ptrdiff_t>(begin),
                                               values.begin() + static_cast<std::ptrdiff_t>(begin + part.size())));
  }
  array.read(1000, std::span<std::uint16_t>());
}

TEST(Hdf5FileTest, WidensToTheTypeThatIsAskedFor) {
  const TemporaryFolder folder;
  write(folder / "a.h5", {1, 65535}, 2);
  const Hdf5Array array = Hdf5File::open_to_read(folder / "a.h5").open_array("values");
  std::vector<std::uint64_t> wide(2);
  array.read(0, std::span(wide));
  EXPECT_EQ(wide, (std::vector<std::uint64_t>{1, 65535}));
}

TEST(Hdf5FileTest, WritesTheSameBytesForTheSameCalls) {
  const TemporaryFolder folder;
  write(folder / "a.h5", ascending(300), 100);
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));  // HDF5's time stamps count seconds
  write(folder / "b.h5", ascending(300), 100);
  EXPECT_EQ(read_file(folder / "a.h5"), read_file(folder / "b.h5"));
}

TEST(Hdf5FileTest, RefusesToReadBeyondTheEnd) {
  const TemporaryFolder folder;
  write(folder / "a.h5", ascending(10), 4);
  const Hdf5Array array = Hdf5File::open_to_read(folder / "a.h5").open_array("values");
  std::vector<std::uint16_t> values(3);
  EXPECT_THAT(message_of_error(ErrorCode::kUsage, [&] { array.read(8, std::span(values)); }),
              HasSubstr("elements 8 to 11 were asked for, it has 10"));
  EXPECT_THAT(message_of_error(ErrorCode::kUsage, [&] { array.read(~std::uint64_t{0}, std::span(values)); }),
              HasSubstr("it has 10"));
}

TEST(Hdf5FileTest, NamesTheFileThatIsNotThere) {
  const TemporaryFolder folder;
  EXPECT_EQ(message_of_error(ErrorCode::kIo, [&] { static_cast<void>(Hdf5File::open_to_read(folder / "none.h5")); }),
            "open " + (folder / "none.h5").string() + ": No such file or directory");
  EXPECT_THAT(message_of_error(ErrorCode::kIo, [&] { static_cast<void>(Hdf5File::create(folder / "no/a.h5")); }),
              HasSubstr("No such file or directory"));
}

TEST(Hdf5FileTest, TellsAForeignFileFromACutOne) {
  const TemporaryFolder folder;
  write_file_atomic(folder / "text.h5", "no HDF5 at all");
  EXPECT_EQ(
      message_of_error(ErrorCode::kCorrupt, [&] { static_cast<void>(Hdf5File::open_to_read(folder / "text.h5")); }),
      "open " + (folder / "text.h5").string() + ": not an HDF5 file");
  write(folder / "a.h5", ascending(1000), 100);
  std::filesystem::resize_file(folder / "a.h5", 1500);
  EXPECT_THAT(
      message_of_error(ErrorCode::kCorrupt, [&] { static_cast<void>(Hdf5File::open_to_read(folder / "a.h5")); }),
      HasSubstr("truncated"));
}

TEST(Hdf5FileTest, NamesTheDatasetThatIsNotThere) {
  const TemporaryFolder folder;
  write(folder / "a.h5", ascending(10), 4);
  const Hdf5File file = Hdf5File::open_to_read(folder / "a.h5");
  EXPECT_EQ(message_of_error(ErrorCode::kCorrupt, [&] { static_cast<void>(file.open_array("tokens")); }),
            "read tokens of " + (folder / "a.h5").string() + ": there is no such dataset");
}

TEST(Hdf5FileTest, SaysThatTheDiskIsFull) {
  if (!std::filesystem::exists("/dev/full")) {
    GTEST_SKIP() << "this system has no /dev/full";
  }
  EXPECT_THAT(message_of_error(ErrorCode::kNoSpace,
                               [&] {
                                 Hdf5File file = Hdf5File::create("/dev/full");
                                 file.create_array("values", DType::kU16, 1 << 16);
                                 file.append("values", ascending(1 << 16));
                                 file.close();
                               }),
              HasSubstr("No space left on device"));
}

TEST(Hdf5FileTest, RefusesArraysOfMoreThanOneDimension) {
  for (const char* name : {"two_dimensions_chunked.h5", "two_dimensions_contiguous.h5"}) {
    const std::filesystem::path path = std::filesystem::path(GOLDEN_FOLDER) / name;
    EXPECT_EQ(message_of_error(ErrorCode::kCorrupt,
                               [&] { static_cast<void>(Hdf5File::open_to_read(path).open_array("tokens")); }),
              "read tokens of " + path.string() + ": 2 dimensions, expected 1");
  }
}

TEST(Hdf5FileTest, MayBeReadByManyThreads) {
  const TemporaryFolder folder;
  const auto values = ascending(5000);
  write(folder / "a.h5", values, 100);
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (std::size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const Hdf5Array array = Hdf5File::open_to_read(folder / "a.h5").open_array("values");
      std::vector<std::uint16_t> part(50);
      for (std::size_t begin = t; begin + 50 < 5000; begin += 37) {
        array.read(begin, std::span(part));
        wrong[t] += std::equal(part.begin(), part.end(), values.begin() + static_cast<std::ptrdiff_t>(begin)) ? 0 : 1;
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(wrong, (std::vector<int>{0, 0, 0, 0}));
}

}  // namespace
}  // namespace lockstep
