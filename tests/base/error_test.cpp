#include "base/error.h"

#include <gtest/gtest.h>

#include <cerrno>

namespace lockstep {
namespace {

TEST(ErrorTest, CarriesItsCodeAndItsMessage) {
  try {
    fail(ErrorCode::kCorrupt, "{} line {}: \"{}\" is missing", "corpus.jsonl", 812, "text");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kCorrupt);
    EXPECT_STREQ(error.what(), "corpus.jsonl line 812: \"text\" is missing");
  }
}

TEST(ErrorTest, RequireThrowsAUsageErrorOnlyWhenTheConditionFails) {
  EXPECT_NO_THROW(require(true, "never {}", 1));
  try {
    require(false, "found {}, expected {}", 3, 4);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUsage);
    EXPECT_STREQ(error.what(), "found 3, expected 4");
  }
}

TEST(ErrorTest, TellsAFullDiskFromOtherFailures) {
  for (const int number : {ENOSPC, EDQUOT}) {
    errno = number;
    try {
      fail_errno("write x");
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kNoSpace);
    }
  }
  errno = EACCES;
  try {
    fail_errno("write x");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kIo);
    EXPECT_STREQ(error.what(), "write x: Permission denied");
  }
}

}  // namespace
}  // namespace lockstep
