// Products of f32 on a GPU, exact unless TF32 was asked for: a factor that 10 bits of mantissa cannot hold shows which.
#include <gtest/gtest.h>

#include <vector>

#include "op_harness.h"

namespace lockstep::test {
namespace {

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
  EXPECT_EQ(product_of(*make_cuda_backend(0, 1, true)), kSize);
}

}  // namespace
}  // namespace lockstep::test
