#include "base/writable_folder.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>

#include "base/file.h"
#include "tests/support/error_matcher.h"
#include "tests/support/temporary_folder.h"

namespace lockstep {
namespace {

TEST(WritableFolderTest, FindsTheFolderThatANewOneWouldLieIn) {
  const TemporaryFolder folder;
  EXPECT_EQ(existing_part(folder / "a/b/c"), folder.path());
  EXPECT_EQ(existing_part(folder.path()), folder.path());
  write_file_atomic(folder / "file", "");
  EXPECT_EQ(existing_part(folder / "file/b"), folder / "file");
  EXPECT_EQ(existing_part("none-of-this/name"), std::filesystem::current_path());
}

TEST(WritableFolderTest, SaysWhyAFolderCannotBeWritten) {
  const TemporaryFolder folder;
  require_writable_folder(folder.path());
  require_writable_folder(folder / "a/b");
  write_file_atomic(folder / "file", "");
  const std::string place = (folder / "file/b").string();
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { require_writable_folder(place); }),
            place + " cannot be written: " + (folder / "file").string() + " is not a folder");
  const std::string long_name = (folder / std::string(300, 'x')).string();
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { require_writable_folder(long_name); }),
            long_name + " cannot be written: " + long_name + ": File name too long");
}

// Lets root, who may do anything, be somebody else for a while.
class NotRoot {
 public:
  NotRoot() : is_other_(::geteuid() == 0 && ::seteuid(kNobody) == 0) {}
  ~NotRoot() {
    if (is_other_) {
      EXPECT_EQ(::seteuid(0), 0);
    }
  }
  NotRoot(const NotRoot&) = delete;
  NotRoot& operator=(const NotRoot&) = delete;

 private:
  static constexpr uid_t kNobody = 65534;
  bool is_other_;
};

TEST(WritableFolderTest, HeedsPermissions) {
  const TemporaryFolder folder;
  ASSERT_EQ(::chmod(folder.path().c_str(), 0777), 0);
  const NotRoot user;
  if (::geteuid() == 0 || ::faccessat(AT_FDCWD, folder.path().c_str(), W_OK | X_OK, AT_EACCESS) != 0) {
    GTEST_SKIP() << "here root cannot be anybody else, or not in a temporary folder";
  }
  std::filesystem::create_directory(folder / "locked");
  write_file_atomic(folder / "locked/file", "");
  const std::string locked = (folder / "locked").string();
  ASSERT_EQ(::chmod((locked + "/file").c_str(), 0444), 0);
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { require_writable_file(locked + "/file"); }),
            locked + "/file cannot be written: Permission denied");
  for (const mode_t mode : {0500, 0000}) {
    ASSERT_EQ(::chmod(locked.c_str(), mode), 0);
    EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { require_writable_folder(locked + "/new"); }),
              locked + "/new cannot be written: " + locked + (mode == 0 ? "/new" : "") + ": Permission denied");
  }
  ASSERT_EQ(::chmod(locked.c_str(), 0700), 0);
  require_writable_folder(locked + "/new");
  require_writable_file(locked + "/none");
}

TEST(WritableFolderTest, KnowsTheRoomOfTheFileSystem) {
  const TemporaryFolder folder;
  ASSERT_TRUE(room_at(folder.path()).has_value());
  EXPECT_GT(*room_at(folder / "a/b"), 0U);
  EXPECT_EQ(room_at("/proc/lockstep").value_or(0), 0U);
}

}  // namespace
}  // namespace lockstep
