// How a failed call of CUDA is told. Needs no GPU.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/cuda/runtime.h"
#include "base/error.h"

namespace lockstep::cuda {
namespace {

constexpr const char* kDevice = "GPU 3 (NVIDIA H200, PCI 0000:3b:00.0)";

TEST(CudaFailureTest, SaysWhatWasDoneWhereAndInCudasWords) {
  EXPECT_EQ(describe_failure(cudaErrorInvalidValue, "device: copying", kDevice),
            "device: copying: invalid argument on GPU 3 (NVIDIA H200, PCI 0000:3b:00.0)");
}

TEST(CudaFailureTest, PointsToTheKernelsLogAfterTheEndOfTheDevice) {
  EXPECT_EQ(
      describe_failure(cudaErrorECCUncorrectable, "device: waiting", kDevice),
      "device: waiting: uncorrectable ECC error encountered on GPU 3 (NVIDIA H200, PCI 0000:3b:00.0); why, `dmesg | "
      "grep Xid` on this host may tell");
  for (const cudaError_t status :
       {cudaErrorLaunchFailure, cudaErrorIllegalAddress, cudaErrorNoDevice, cudaErrorUnknown}) {
    EXPECT_THAT(describe_failure(status, "device: waiting", kDevice), testing::HasSubstr("dmesg | grep Xid"));
  }
}

TEST(CudaFailureTest, IsADeviceErrorThatNamesTheGpu) {
  EXPECT_NO_THROW(check(cudaSuccess, "device: waiting"));
  try {
    check(cudaErrorInvalidValue, "device: waiting");
    FAIL() << "an error was let pass";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kDevice);
    EXPECT_STREQ(error.what(), "device: waiting: invalid argument on a GPU that was not chosen yet");
  }
}

}  // namespace
}  // namespace lockstep::cuda
