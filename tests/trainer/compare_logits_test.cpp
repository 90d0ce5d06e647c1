#include "trainer/compare_logits.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "tests/support/error_matcher.h"
#include "tests/trainer/small_models.h"

namespace lockstep {
namespace {

const float kLog3 = std::log(3.0F);

TEST(LogitsDifferenceTest, IsZeroBetweenEqualLogits) {
  const std::vector<float> logits = {0.1F, -3.0F, 80.0F, 1e-3F, 0, 0};
  LogitsDifference difference;
  difference.add(logits, logits, 3);
  EXPECT_EQ(difference.positions(), 2);
  EXPECT_EQ(difference.largest(), 0);
  EXPECT_EQ(difference.relative(), 0);
  EXPECT_EQ(difference.mean_kl(), 0);
  EXPECT_EQ(difference.largest_kl(), 0);
  EXPECT_EQ(difference.same_top(), 1);
}

// One half each against three quarters and a quarter: KL = (ln(2/3) + ln 2) / 2 = ln(4/3) / 2.
TEST(LogitsDifferenceTest, IsWhatItsDefinitionSays) {
  LogitsDifference difference;
  difference.add(std::vector<float>{0, 0, -2, -2}, std::vector<float>{kLog3, 0, -2, -2}, 2);
  EXPECT_EQ(difference.positions(), 2);
  EXPECT_NEAR(difference.largest(), std::log(3.0), 1e-7);
  EXPECT_NEAR(difference.relative(), std::log(3.0) / 2, 1e-7);
  EXPECT_NEAR(difference.largest_kl(), std::log(4.0 / 3.0) / 2, 1e-7);
  EXPECT_NEAR(difference.mean_kl(), std::log(4.0 / 3.0) / 4, 1e-7);
  EXPECT_EQ(difference.same_top(), 1);  // of two that are equal the first counts
  difference.add(std::vector<float>{0, 1, 0, 1}, std::vector<float>{1, 0, 0, 1}, 2);
  EXPECT_EQ(difference.same_top(), 0.75);
}

TEST(LogitsDifferenceTest, IsNotANumberWhereALogitIsNone) {
  LogitsDifference difference;
  difference.add(std::vector<float>{0, 0}, std::vector<float>{std::numeric_limits<float>::quiet_NaN(), 0}, 2);
  difference.add(std::vector<float>{0, 0}, std::vector<float>{0, 0}, 2);
  EXPECT_TRUE(std::isnan(difference.largest()));
  EXPECT_TRUE(std::isnan(difference.mean_kl()));
  EXPECT_TRUE(std::isnan(difference.largest_kl()));
}

// Probabilities 3/4 and 1/2 of the targets: exp(-(ln 3/4 + ln 1/2) / 2) = sqrt(8 / 3).
TEST(TextLossTest, IsThePerplexityOfTheTargets) {
  TextLoss loss;
  loss.add(std::vector<float>{kLog3, 0, 5, 5, 0, 9}, std::vector<std::int32_t>{0, 1, -1});
  EXPECT_EQ(loss.tokens(), 2);
  EXPECT_NEAR(loss.perplexity(), std::sqrt(8.0 / 3.0), 1e-7);
}

TEST(LogitsOfTest, AreThoseOfTheNextTokenAtEveryPlace) {
  const auto backend = make_cpu_backend(1);
  for (const Architecture& architecture : {small_gpt2(), small_llama()}) {
    Replica replica(architecture, Precision::kFp32, *backend);
    randomize(replica);
    Arena arena;
    Tape tape(*backend, arena, nullptr);
    const std::vector<std::int32_t> tokens = random_tokens(24, architecture.vocab);
    const std::vector<float> all = logits_of(replica, tape, {tokens, {}});
    const auto vocab = static_cast<std::size_t>(architecture.vocab);
    ASSERT_EQ(all.size(), tokens.size() * vocab);
    for (const std::size_t length : {1U, 7U, 24U}) {
      KvCache cache(architecture, DType::kF32, *backend);
      const Tensor next = replica.model().next_logits(tape, replica.weights(), std::span(tokens).first(length), cache);
      for (std::size_t i = 0; i < vocab; ++i) {
        ASSERT_NEAR(all[(length - 1) * vocab + i], next.as<float>()[i], 1e-4F);
      }
    }
    const std::vector<std::int32_t> longer = random_tokens(25, architecture.vocab);
    EXPECT_EQ(message_of_error(ErrorCode::kUsage,
                               [&] {
                                 (void)logits_of(replica, tape, {longer, {}});
                               }),
              "model: a sequence of 25 is longer than the context of 24");
  }
}

}  // namespace
}  // namespace lockstep
