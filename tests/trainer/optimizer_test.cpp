#include "trainer/optimizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "base/random.h"
#include "tests/ops/sum_of_squares.h"

namespace lockstep {
namespace {

// Matrices, which decay, between vectors, which do not; sizes with padding.
ParameterLayout mixed_layout() {
  return ParameterLayout({{"gain", {19}, false, {}},
                          {"bias", {3}, false, {}},
                          {"first", {7, 11}, true, {}},
                          {"second", {16, 2}, true, {}, 0.5},
                          {"last", {5}, false, {}}});
}

// Master weights, moments and a gradient, with the optimizer that works on them.
class OptimizerTest : public testing::Test {
 protected:
  void make(const OptimizerConfig& config) {
    config_ = config;
    optimizer_ = std::make_unique<Optimizer>(layout_, *backend_, config, ElementRange{0, layout_.total()});
  }
  // Values in [-0.5, 0.5) for every parameter; padding is zero.
  [[nodiscard]] std::vector<float> values(std::uint32_t seed) const {
    std::vector<float> flat(layout_.total(), 0.0F);
    for (std::size_t p = 0; p < layout_.size(); ++p) {
      for (std::size_t i = 0; i < layout_.count(p); ++i) {
        const std::size_t at = layout_.offset(p) + i;
        flat[at] = uniform_float(philox({seed, 0}, at)[0]) - 0.5F;
      }
    }
    return flat;
  }
  double step(double learning_rate, std::span<const float> gradient) {
    const double norm = std::sqrt(test::sum_of_squares(*backend_, gradient));
    optimizer_->update({.step = ++steps_,
                        .learning_rate = learning_rate,
                        .gradient_norm = norm,
                        .part = optimizer_->owned(),
                        .gradient = gradient,
                        .master = master_});
    return norm;
  }

  // AdamW in double precision, written down plainly (Loshchilov, Hutter 2019, algorithm 2).
  void reference_step(double learning_rate, std::span<const float> gradient) {
    double squares = 0;
    for (const float g : gradient) {
      squares += static_cast<double>(g) * static_cast<double>(g);
    }
    const double norm = std::sqrt(squares);
    const double scale = config_.clip_norm > 0 && norm > config_.clip_norm ? config_.clip_norm / norm : 1.0;
    const auto t = static_cast<double>(steps_);
    for (std::size_t p = 0; p < layout_.size(); ++p) {
      const double decay = layout_.specs()[p].shape.size() == 2 ? config_.weight_decay : 0.0;
      for (std::size_t i = layout_.offset(p); i < layout_.offset(p) + layout_.count(p); ++i) {
        const double g = scale * static_cast<double>(gradient[i]);
        m_[i] = config_.betas[0] * m_[i] + (1 - config_.betas[0]) * g;
        v_[i] = config_.betas[1] * v_[i] + (1 - config_.betas[1]) * g * g;
        const double m_hat = m_[i] / (1 - std::pow(config_.betas[0], t));
        const double v_hat = v_[i] / (1 - std::pow(config_.betas[1], t));
        w_[i] -= layout_.specs()[p].rate * learning_rate * (m_hat / (std::sqrt(v_hat) + config_.eps) + decay * w_[i]);
      }
    }
  }

  ParameterLayout layout_ = mixed_layout();
  std::unique_ptr<Backend> backend_ = make_cpu_backend(2);
  OptimizerConfig config_;
  std::unique_ptr<Optimizer> optimizer_;
  std::int64_t steps_ = 0;
  std::vector<float> master_ = values(1);
  std::vector<double> w_{master_.begin(), master_.end()};
  std::vector<double> m_ = std::vector<double>(layout_.total());
  std::vector<double> v_ = std::vector<double>(layout_.total());
};

TEST_F(OptimizerTest, FollowsAdamWInDoublePrecision) {
  for (const double clip_norm : {0.0, 1.0, 1e9}) {
    steps_ = 0;
    master_ = values(1);
    w_.assign(master_.begin(), master_.end());
    std::ranges::fill(m_, 0.0);
    std::ranges::fill(v_, 0.0);
    make({.betas = {0.8, 0.98}, .eps = 1e-6, .weight_decay = 0.2, .clip_norm = clip_norm});
    for (std::uint32_t i = 0; i < 10; ++i) {
      const double learning_rate = 1e-2 / (i + 1);
      const std::vector<float> gradient = values(10 + i);
      static_cast<void>(step(learning_rate, gradient));
      reference_step(learning_rate, gradient);
    }
    for (std::size_t i = 0; i < layout_.total(); ++i) {
      EXPECT_NEAR(static_cast<double>(master_[i]), w_[i], 1e-6) << i;
      EXPECT_NEAR(static_cast<double>(optimizer_->exp_avg()[i]), m_[i], 1e-7) << i;
      EXPECT_NEAR(static_cast<double>(optimizer_->exp_avg_sq()[i]), v_[i], 1e-7) << i;
    }
  }
}

TEST_F(OptimizerTest, ReturnsTheNormBeforeClippingAndClipsTheWholeGradient) {
  std::vector<float> gradient(layout_.total(), 0.0F);
  gradient[0] = 3.0F;
  gradient[layout_.offset(2)] = -4.0F;
  make({.betas = {0.5, 0.5}, .clip_norm = 0.5});
  EXPECT_EQ(step(0, gradient), 5.0);
  EXPECT_FLOAT_EQ(optimizer_->exp_avg()[0], 0.5F * 0.3F);
  EXPECT_FLOAT_EQ(optimizer_->exp_avg()[layout_.offset(2)], 0.5F * -0.4F);
  make({.betas = {0.5, 0.5}, .clip_norm = 5.0});
  EXPECT_EQ(step(0, gradient), 5.0);
  EXPECT_EQ(optimizer_->exp_avg()[0], 1.5F);
  make({.betas = {0.5, 0.5}, .clip_norm = 0});
  EXPECT_EQ(step(0, gradient), 5.0);
  EXPECT_EQ(optimizer_->exp_avg()[0], 1.5F);
}

TEST_F(OptimizerTest, DecaysMatricesAndNothingElse) {
  make({.weight_decay = 0.5, .clip_norm = 1.0});
  const std::vector<float> before = master_;
  EXPECT_EQ(step(0.5, std::vector<float>(layout_.total(), 0.0F)), 0.0);
  for (std::size_t p = 0; p < layout_.size(); ++p) {
    const float rate = layout_.specs()[p].rate == 1 ? 1.0F : 0.5F;
    const float factor = layout_.specs()[p].shape.size() == 2 ? 1.0F - 0.25F * rate : 1.0F;
    for (std::size_t i = layout_.offset(p); i < layout_.offset(p) + layout_.count(p); ++i) {
      EXPECT_EQ(master_[i], factor * before[i]) << layout_.specs()[p].name;
    }
  }
}

TEST_F(OptimizerTest, LeavesPaddingZero) {
  make({});
  for (std::uint32_t i = 0; i < 3; ++i) {
    static_cast<void>(step(1e-2, values(20 + i)));
  }
  for (std::size_t p = 0; p < layout_.size(); ++p) {
    const std::size_t end = p + 1 < layout_.size() ? layout_.offset(p + 1) : layout_.total();
    for (std::size_t i = layout_.offset(p) + layout_.count(p); i < end; ++i) {
      EXPECT_EQ(master_[i], 0.0F);
      EXPECT_EQ(optimizer_->exp_avg()[i], 0.0F);
      EXPECT_EQ(optimizer_->exp_avg_sq()[i], 0.0F);
    }
  }
}

// Any part of the parameters on its own gives the bits that all of them together give.
TEST_F(OptimizerTest, UpdatesShardsAndSlicesOfThemToTheSameBits) {
  make({.weight_decay = 0.2, .clip_norm = 1.0});
  const std::vector<float> gradient = values(5);
  std::vector<float> in_parts = master_;
  const double norm = step(1e-2, gradient);
  for (const ElementRange owned : {ElementRange{0, 48}, ElementRange{48, layout_.total()}}) {
    Optimizer shard(layout_, *backend_, config_, owned);
    for (std::uint64_t begin = owned.begin; begin < owned.end; begin += 32) {
      const ElementRange part = intersection(owned, {begin, begin + 32});
      shard.update({.step = 1,
                    .learning_rate = 1e-2,
                    .gradient_norm = norm,
                    .part = part,
                    .gradient = std::span(gradient).subspan(part.begin, part.size()),
                    .master = std::span(in_parts).subspan(part.begin, part.size())});
    }
    EXPECT_TRUE(std::ranges::equal(shard.exp_avg(), optimizer_->exp_avg().subspan(owned.begin, owned.size())));
    EXPECT_TRUE(std::ranges::equal(shard.exp_avg_sq(), optimizer_->exp_avg_sq().subspan(owned.begin, owned.size())));
  }
  EXPECT_EQ(in_parts, master_);
}

// The squares are added in double: a gradient whose squares overflow a float has a norm all the same.
TEST_F(OptimizerTest, ClipsAGradientWhoseSquaresDoNotFitAFloat) {
  make({.clip_norm = 1.0});
  std::vector<float> gradient(layout_.total(), 0.0F);
  gradient[0] = 1e30F;
  EXPECT_NEAR(step(1e-2, gradient), 1e30, 1e23);
  EXPECT_NEAR(optimizer_->exp_avg()[0], 0.1F, 1e-6F);
}

}  // namespace
}  // namespace lockstep
