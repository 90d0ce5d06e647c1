// Where CUDA's libraries are found; here the mathematical one under another name stands in for them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <link.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "base/cuda/library.h"
#include "base/error.h"
#include "tests/support/temporary_folder.h"

namespace lockstep::cuda {
namespace {

namespace fs = std::filesystem;

std::string path_of_libm() {
  std::string path;
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* found) {
        if (std::string(info->dlpi_name).find("libm.so") != std::string::npos) {
          *static_cast<std::string*>(found) = info->dlpi_name;
        }
        return 0;
      },
      &path);
  return path;
}

class SharedLibraryTest : public testing::Test {
 protected:
  ~SharedLibraryTest() override {
    unsetenv("VIRTUAL_ENV");
    unsetenv("LOCKSTEP_CUDA_LIBRARIES");
  }
  void put(const fs::path& folder, const std::string& name) {
    fs::create_directories(folder);
    fs::copy_file(path_of_libm(), folder / name);
  }

  TemporaryFolder folder_;
};

TEST_F(SharedLibraryTest, IsFoundInTheFoldersOfTheEnvironmentVariable) {
  put(folder_ / "second", "libstandin1.so.7");
  const std::string folders = (folder_ / "first").string() + ":" + (folder_ / "second").string();
  setenv("LOCKSTEP_CUDA_LIBRARIES", folders.c_str(), 1);
  const SharedLibrary library("libstandin1.so.7");
  EXPECT_TRUE(library.has("cosf"));
  double (*cosine)(double) = nullptr;
  library.find("cos", cosine);
  EXPECT_EQ(cosine(0.0), 1.0);
}

// The loader has a libutil.so.1 of its own, which knows no cosine.
TEST_F(SharedLibraryTest, ComesFromTheFoldersOfTheEnvironmentVariableBeforeTheLoaders) {
  put(folder_.path(), "libutil.so.1");
  setenv("LOCKSTEP_CUDA_LIBRARIES", folder_.path().c_str(), 1);
  EXPECT_TRUE(SharedLibrary("libutil.so.1").has("cosf"));
}

TEST_F(SharedLibraryTest, IsFoundWherePipPutsIt) {
  put(folder_ / "lib" / "python3.11" / "site-packages" / "nvidia" / "standin" / "lib", "libstandin2.so.7");
  setenv("VIRTUAL_ENV", folder_.path().c_str(), 1);
  EXPECT_TRUE(SharedLibrary("libstandin2.so.7").has("cosf"));
}

TEST_F(SharedLibraryTest, SaysWhereItLookedAndWhatIsMissingInAnOldOne) {
  setenv("LOCKSTEP_CUDA_LIBRARIES", "/no/such/folder", 1);
  try {
    const SharedLibrary library("libnosuch.so.7");
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
    EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr("libnosuch.so.7 cannot be opened"),
                                             testing::HasSubstr("/no/such/folder"),
                                             testing::HasSubstr("LOCKSTEP_CUDA_LIBRARIES=FOLDER")));
  }
  put(folder_ / "old", "libstandin3.so.7");
  setenv("LOCKSTEP_CUDA_LIBRARIES", (folder_ / "old").c_str(), 1);
  const SharedLibrary library("libstandin3.so.7");
  EXPECT_FALSE(library.has("of_a_newer_version"));
  void (*function)() = nullptr;
  EXPECT_THROW(library.find("of_a_newer_version", function), Error);
}

}  // namespace
}  // namespace lockstep::cuda
