// In a build without CUDA.
#include <gtest/gtest.h>

#include "base/error.h"
#include "comm/nccl/communicator.h"
#include "comm/self_communicator.h"

namespace lockstep {
namespace {

TEST(NcclUnavailableTest, SaysWhy) {
  try {
    SelfCommunicator host;
    static_cast<void>(make_nccl_communicator({}, host));
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
    EXPECT_STREQ(error.what(), "comm.backend: nccl: this program was built without CUDA");
  }
}

}  // namespace
}  // namespace lockstep
