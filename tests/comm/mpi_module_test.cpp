// Where the module of the mpi backend is found, and what is said when it cannot be used.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "comm/mpi/module.h"
#include "tests/support/error_matcher.h"
#include "tests/support/temporary_folder.h"

namespace lockstep::mpi {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

class MpiModuleTest : public testing::Test {
 protected:
  static std::string refusal(const std::vector<fs::path>& folders) {
    return message_of_error(ErrorCode::kUnsupported, [&] { static_cast<void>(open_module(folders)); });
  }
  [[nodiscard]] std::string file() const { return (folder_ / kModuleFile).string(); }

  const fs::path built_ = fs::path(LOCKSTEP_MPI_MODULE).parent_path();
  TemporaryFolder folder_;
};

TEST_F(MpiModuleTest, IsLookedForBesideTheProgramInItsLibrariesAndWhereItWasBuilt) {
  const fs::path own = fs::read_symlink("/proc/self/exe").parent_path();
  EXPECT_THAT(module_folders(), ElementsAre(own, own.parent_path() / "lib" / "lockstep", built_));
}

TEST_F(MpiModuleTest, IsOpenedInTheFirstFolderThatHasIt) {
  EXPECT_EQ(fs::path(LOCKSTEP_MPI_MODULE).filename(), kModuleFile);
  Factory* const factory = open_module({folder_.path(), built_});
  ASSERT_NE(factory, nullptr);
  EXPECT_EQ(open_module({built_, folder_.path()}), factory);
  std::ofstream(file()) << "no library";
  EXPECT_THAT(refusal({folder_.path(), built_}), HasSubstr(file()));
}

TEST_F(MpiModuleTest, SaysWhereItLooked) {
  EXPECT_EQ(refusal({folder_.path(), "/no/such/folder"}),
            "comm.backend: mpi: liblockstep_mpi.so was not found in any of " + folder_.path().string() +
                ", /no/such/folder; it belongs to this program, beside which it may be copied");
}

TEST_F(MpiModuleTest, SaysWhyItCannotBeOpenedAndWhatHelps) {
  std::ofstream{file()};
  EXPECT_THAT(refusal({folder_.path()}),
              AllOf(StartsWith("comm.backend: mpi: " + file() + " cannot be opened: "), HasSubstr("file too short"),
                    HasSubstr("; install the MPI that this program was built with")));
}

TEST_F(MpiModuleTest, RefusesOneOfAnotherBuild) {
  std::ofstream(folder_ / "empty.c");
  const std::string compile = "cc -shared -o " + file() + " " + (folder_ / "empty.c").string();
  ASSERT_EQ(std::system(compile.c_str()), 0);
  EXPECT_THAT(refusal({folder_.path()}),
              StartsWith("comm.backend: mpi: " + file() +
                         " belongs to another build than this program: it has no lockstep_make_mpi_communicator_"));
}

}  // namespace
}  // namespace lockstep::mpi
