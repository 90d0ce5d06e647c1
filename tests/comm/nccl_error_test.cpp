#include <gtest/gtest.h>

#include "comm/nccl/error.h"

namespace lockstep::nccl {
namespace {

TEST(NcclErrorTest, LetsSuccessAndProgressPass) {
  EXPECT_TRUE(is_good(ncclSuccess));
  EXPECT_TRUE(is_good(ncclInProgress));
  EXPECT_FALSE(is_good(ncclRemoteError));
  EXPECT_FALSE(is_good(ncclInternalError));
}

TEST(NcclErrorTest, TellsTheProgramWhatToDo) {
  EXPECT_EQ(error_code_of(ncclRemoteError), ErrorCode::kPeerLost);
  EXPECT_EQ(error_code_of(ncclInProgress), ErrorCode::kTimeout);
  EXPECT_EQ(error_code_of(ncclSystemError), ErrorCode::kIo);
  EXPECT_EQ(error_code_of(ncclInvalidArgument), ErrorCode::kUsage);
  EXPECT_EQ(error_code_of(ncclInvalidUsage), ErrorCode::kUsage);
  EXPECT_EQ(error_code_of(ncclUnhandledCudaError), ErrorCode::kDevice);
  EXPECT_EQ(error_code_of(ncclInternalError), ErrorCode::kDevice);
}

TEST(NcclErrorTest, TakesAResultOfALaterNcclForADevicesFault) {
  const auto later = static_cast<ncclResult_t>(ncclNumResults + 1);
  EXPECT_FALSE(is_good(later));
  EXPECT_EQ(error_code_of(later), ErrorCode::kDevice);
  EXPECT_EQ(name_of(later), "an unknown result");
}

TEST(NcclErrorTest, NamesResultsAsNcclDoes) {
  EXPECT_EQ(name_of(ncclRemoteError), "ncclRemoteError");
  EXPECT_EQ(name_of(ncclUnhandledCudaError), "ncclUnhandledCudaError");
}

}  // namespace
}  // namespace lockstep::nccl
