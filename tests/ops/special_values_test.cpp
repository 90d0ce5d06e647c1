// Infinities, NaN and numbers at the ends of the range.
#include <gtest/gtest.h>

#include <limits>

#include "op_harness.h"
#include "tests/ops/sum_of_squares.h"

namespace lockstep::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
const double kNaN = std::nan("");

class SpecialValuesTest : public OpTest {
 protected:
  [[nodiscard]] Tensor tensor(const Values& values) {
    return graph_.constant({static_cast<std::int64_t>(values.size())}, values, dtype());
  }

  Graph graph_{GetParam()};
  Backend& backend_ = graph_.backend();
};

TEST_P(SpecialValuesTest, GeluIsTheIdentityFarRightAndZeroFarLeft) {
  const double huge = dtype() == DType::kF16 ? 6e4 : 1e30;
  const Values x = {-huge, -1e4, -40, 0, 40, 1e4, huge};
  const Tensor input = tensor(x);
  const Tensor y = tensor(Values(x.size(), 7));
  backend_.gelu_forward(input, y);
  EXPECT_EQ(to_values(y), (Values{0, 0, 0, 0, to_values(input)[4], to_values(input)[5], to_values(input)[6]}));

  const Tensor dx = tensor(Values(x.size(), 7));
  backend_.gelu_backward(input, tensor(Values(x.size(), 2)), dx);
  EXPECT_EQ(to_values(dx), (Values{0, 0, 0, 1, 2, 2, 2}));
}

TEST_P(SpecialValuesTest, GeluKeepsItsRelativeAccuracyInTheLeftTail) {
  const double least = dtype() == DType::kF16 ? 0x1p-25 : 0;  // half of the smallest f16
  for (const double x : {-2.0, -4.0, -6.0, -8.0, -9.0}) {
    const Tensor y = tensor({7});
    backend_.gelu_forward(tensor({x}), y);
    const double u = 2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x);
    const double expected = x / (1 + std::exp(-u));
    EXPECT_NEAR(to_values(y)[0], expected, std::max(least, std::abs(expected) * tolerance(10))) << x;
  }
}

TEST_P(SpecialValuesTest, SwigluOfLargeGatesIsLinearOrZero) {
  const Tensor gate_up = graph_.constant({3, 2}, {-1e4, 3, 1e4, 3, 0, 3}, dtype());
  const Tensor y = graph_.constant({3, 1}, {7, 7, 7}, dtype());
  backend_.swiglu_forward(gate_up, y);
  const double large = to_values(gate_up)[2];
  EXPECT_TRUE(near(to_values(y), {0, large * 3, 0}, tolerance()));
  EXPECT_EQ(to_values(y)[0], 0);

  const Tensor dgate_up = graph_.constant({3, 2}, Values(6, 7), dtype());
  backend_.swiglu_backward(gate_up, graph_.constant({3, 1}, {1, 1, 1}, dtype()), dgate_up);
  EXPECT_EQ(to_values(dgate_up), (Values{0, 0, 3, large, 1.5, 0}));
}

TEST_P(SpecialValuesTest, NaNPassesThroughActivationsAndAdditions) {
  Values x(37, 1);
  x[5] = kNaN;
  x[36] = kNaN;
  const Tensor input = tensor(x);
  const Tensor ones = tensor(Values(37, 1));
  const auto expect_two = [&](const char* what, const Tensor& result) {
    const Values values = to_values(result);
    for (std::size_t i = 0; i < values.size(); ++i) {
      EXPECT_EQ(std::isnan(values[i]), i == 5 || i == 36) << what << ", " << i;
    }
  };
  const Tensor y = tensor(Values(37, 7));
  backend_.gelu_forward(input, y);
  expect_two("gelu", y);
  backend_.gelu_backward(input, ones, y);
  expect_two("gelu backward in x", y);
  backend_.gelu_backward(ones, input, y);
  expect_two("gelu backward in dy", y);
  backend_.add(input, ones, y);
  expect_two("add", y);

  Values gate_up = x;
  gate_up.insert(gate_up.end(), 37, 1.0);
  const Tensor row = graph_.constant({1, 37}, Values(37, 7), dtype());
  backend_.swiglu_forward(graph_.constant({1, 74}, gate_up, dtype()), row);
  expect_two("swiglu", row);
}

TEST_P(SpecialValuesTest, NaNAndInfinityMakeTheirRowOfANormNaNAndNoOther) {
  for (const NormKind kind : {NormKind::kLayer, NormKind::kRms}) {
    for (const double bad : {kNaN, kInfinity}) {
      Values x(3 * 33);
      for (std::size_t i = 0; i < x.size(); ++i) {
        x[i] = static_cast<double>(i % 7);
      }
      x[40] = bad;
      NormForward norm;
      norm.kind = kind;
      norm.x = graph_.constant({3, 33}, x, dtype());
      norm.gain = tensor(Values(33, 1));
      norm.y = graph_.constant({3, 33}, x, dtype());
      norm.mean = graph_.constant({3}, {0, 0, 0}, DType::kF32);
      norm.rstd = graph_.constant({3}, {0, 0, 0}, DType::kF32);
      backend_.norm_forward(norm);
      const Values y = to_values(norm.y);
      EXPECT_TRUE(std::isnan(y[40]));
      for (std::size_t i = 0; i < y.size(); ++i) {
        EXPECT_TRUE(i / 33 == 1 || std::isfinite(y[i])) << i;
      }
    }
  }
}

TEST_P(SpecialValuesTest, NaNLogitsGiveANaNLossThatNobodyCanOverlook) {
  Values logits(2 * 50, 0.5);
  logits[7] = kNaN;
  const Tensor x = graph_.constant({2, 50}, logits, DType::kF32);
  const std::vector<std::int32_t> targets = {3, 3};
  const Tensor losses = graph_.constant({2}, {0, 0}, DType::kF32);
  const Tensor likeliest = graph_.tape().make({2}, DType::kI32);
  backend_.cross_entropy({x, 50, targets, 1.0F, Tensor(), losses, likeliest});
  EXPECT_EQ(elements_of<std::int32_t>(likeliest.buffer()), (std::vector<std::int32_t>{-1, 0}));
  EXPECT_TRUE(std::isnan(to_values(losses)[0]));
  EXPECT_NEAR(to_values(losses)[1], std::log(50.0), 1e-6);
}

TEST_P(SpecialValuesTest, SquaresBeyondTheRangeOfFloatAreSummed) {
  const Tensor large = graph_.constant({5000}, Values(5000, 1e30), DType::kF32);
  EXPECT_NEAR(test::sum_of_squares(backend_, large.as<float>()) / (5000 * 1e60), 1, 1e-6);
  const Tensor bad = graph_.constant({2}, {1, kNaN}, DType::kF32);
  EXPECT_TRUE(std::isnan(test::sum_of_squares(backend_, bad.as<float>())));
}

// What does not fit into f16 is infinite, also where a product is computed in parts: the scale of a loss depends on it.
TEST_P(SpecialValuesTest, ProductsThatAreTooLargeForF16AreInfinite) {
  if (dtype() != DType::kF16) {
    GTEST_SKIP() << "of f16 alone";
  }
  for (const std::int64_t inner : {64, 4096}) {
    for (const Epilogue epilogue : {Epilogue::kNone, Epilogue::kGelu, Epilogue::kGeluGradient}) {
      const double factor = std::sqrt(1e5 / static_cast<double>(inner));
      const Values factors(static_cast<std::size_t>(8 * inner), factor);
      const Tensor a = graph_.constant({8, inner}, factors, dtype());
      const Tensor b = graph_.constant({inner, 8}, factors, dtype());
      const Tensor d = graph_.constant({8, 8}, Values(64, 0), dtype());
      Gemm gemm{.a = {a.data(), dtype(), 8, inner, inner},
                .b = {b.data(), dtype(), inner, 8, 8},
                .d = {d.data(), dtype(), 8, 8, 8}};
      gemm.epilogue = epilogue;
      if (epilogue != Epilogue::kNone) {
        gemm.before = graph_.constant({8, 8}, Values(64, 1), dtype());
      }
      backend_.gemm(gemm);
      EXPECT_EQ(to_values(d), Values(64, kInfinity)) << inner;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ops, SpecialValuesTest, testing::ValuesIn(all_platforms()), name_of_platform);

}  // namespace
}  // namespace lockstep::test
