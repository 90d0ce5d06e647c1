// Products of f32 on a GPU, exact unless TF32 was asked for: a factor that 10 bits of mantissa cannot hold shows which.
// And what cards have that know neither TF32 nor bf16.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "op_harness.h"
#include "tests/support/error_matcher.h"

namespace lockstep::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr std::int64_t kSize = 256;
// To the nearest of TF32's, 1.
constexpr float kFactor = 1 + 1.0F / 4096;

// An element of A B, all of A being kFactor and all of B being 1.
float product_of(Backend& backend) {
  constexpr std::size_t kCount = kSize * kSize;
  std::vector<Buffer> memory;
  const auto matrix = [&](float value) {
    std::vector<float> values(kCount, value);
    memory.push_back(backend.allocate(kCount * sizeof(float)));
    backend.copy({values.data(), kCount, DType::kF32, {}},
                 {memory.back().data(), kCount, DType::kF32, backend.device()});
    return Matrix{memory.back().data(), DType::kF32, kSize, kSize, kSize, false};
  };
  const Matrix a = matrix(kFactor);
  const Matrix b = matrix(1);
  const Matrix d = matrix(0);
  backend.gemm({.a = a, .b = b, .d = d});
  float first = 0;
  backend.copy({d.data, 1, DType::kF32, backend.device()}, {&first, 1, DType::kF32, {}});
  return first;
}

TEST(Tf32Test, RoundsTheFactorsOnlyWhereItWasAskedFor) {
  EXPECT_EQ(product_of(*make_cpu_backend(1)), kSize * kFactor);
  if (!has_gpu()) {
    GTEST_SKIP() << "no GPU that can be used";
  }
  EXPECT_EQ(product_of(*make_cuda_backend(0, 1)), kSize * kFactor);
  if (gpu_has_bf16()) {
    EXPECT_EQ(product_of(*make_cuda_backend(0, 1, true)), kSize);
  } else {
    EXPECT_THAT(message_of_error(ErrorCode::kUnsupported, [] { static_cast<void>(make_cuda_backend(0, 1, true)); }),
                AllOf(HasSubstr("compute capability 7.5 and no TF32"), HasSubstr("device.tf32")));
  }
}

TEST(Tf32Test, AGpuSaysWhichWorkingDtypesItMultiplies) {
  if (!has_gpu()) {
    GTEST_SKIP() << "no GPU that can be used";
  }
  const std::unique_ptr<Backend> backend = make_cuda_backend(0, 1);
  EXPECT_TRUE(backend->has_native(DType::kF32));
  EXPECT_TRUE(backend->has_native(DType::kF16));
  EXPECT_EQ(backend->has_native(DType::kBF16), gpu_has_bf16());
  if (gpu_has_bf16()) {
    return;
  }
  const Buffer memory = backend->allocate(3 * 64 * sizeof(BFloat16));
  const auto matrix = [&](std::size_t i) {
    return Matrix{memory.data() + i * 64 * sizeof(BFloat16), DType::kBF16, 8, 8, 8, false};
  };
  EXPECT_THAT(message_of_error(ErrorCode::kUnsupported,
                               [&] { backend->gemm({.a = matrix(0), .b = matrix(1), .d = matrix(2)}); }),
              AllOf(HasSubstr("device: GPU 0 ("), HasSubstr("compute capability 7.5 and no bf16"),
                    HasSubstr("train.precision: fp16 or fp32")));
}

}  // namespace
}  // namespace lockstep::test
