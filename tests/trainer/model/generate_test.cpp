#include "trainer/generate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "tests/support/error_matcher.h"
#include "tests/trainer/small_models.h"

namespace lockstep {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class GenerateTest : public testing::TestWithParam<ModelFamily> {
 protected:
  GenerateTest() { randomize(replica_); }

  // Logits after `tokens`, which are given in pieces of the sizes in `pieces` (repeated as often as needed).
  [[nodiscard]] std::vector<float> logits(std::span<const std::int32_t> tokens,
                                          const std::vector<std::size_t>& pieces) {
    KvCache cache(replica_.model().architecture(), replica_.working_dtype(), *backend_);
    Tensor last;
    std::size_t begin = 0;
    for (std::size_t i = 0; begin < tokens.size(); ++i) {
      const std::size_t size = std::min(pieces[i % pieces.size()], tokens.size() - begin);
      last = replica_.model().next_logits(tape_, replica_.weights(), tokens.subspan(begin, size), cache);
      begin += size;
    }
    EXPECT_EQ(cache.length(), static_cast<std::int64_t>(tokens.size()));
    return {last.as<float>().begin(), last.as<float>().end()};
  }
  // -log p(token) after `tokens`, by the training's forward pass.
  [[nodiscard]] double loss_of(std::span<const std::int32_t> tokens, std::int32_t token) {
    return loss_of(replica_, tokens, token);
  }
  [[nodiscard]] double loss_of(const Replica& replica, std::span<const std::int32_t> tokens, std::int32_t token) {
    std::vector<std::int32_t> targets(tokens.size(), -1);
    targets.back() = token;
    return replica.model()
        .loss(tape_, replica.weights(), {tokens, targets, 1, static_cast<std::int64_t>(tokens.size())}, {}, 1.0F)
        .sum();
  }
  [[nodiscard]] std::vector<std::int32_t> generated(std::span<const std::int32_t> prompt,
                                                    const GenerateOptions& options) {
    std::vector<std::int32_t> text;
    generate(replica_, arena_, prompt, options, [&](std::int32_t token) {
      text.push_back(token);
      return true;
    });
    return text;
  }

  std::unique_ptr<Backend> backend_ = make_cpu_backend(2);
  Replica replica_{GetParam() == ModelFamily::kGpt2 ? small_gpt2() : small_llama(), Precision::kFp32, *backend_};
  Arena arena_;
  Tape tape_{*backend_, arena_, nullptr};
};

TEST_P(GenerateTest, CachedLogitsAreThoseOfTheFullForwardPass) {
  for (const std::size_t length : {1, 2, 17, 24}) {
    const std::vector<std::int32_t> tokens = random_tokens(length, 61);
    const std::vector<float> cached = logits(tokens, {1});
    const float largest = *std::ranges::max_element(cached);
    double sum = 0;
    for (const float logit : cached) {
      sum += std::exp(static_cast<double>(logit - largest));
    }
    for (std::int32_t token = 0; token < 61; token += 7) {
      const double expected = loss_of(tokens, token);
      const double actual = std::log(sum) - static_cast<double>(cached[static_cast<std::size_t>(token)] - largest);
      EXPECT_NEAR(actual, expected, 1e-5 * std::max(1.0, expected)) << length << " tokens";
    }
  }
}

TEST_P(GenerateTest, APromptInPiecesGivesTheLogitsOfTheWholePrompt) {
  const std::vector<std::int32_t> tokens = random_tokens(24, 61);
  const std::vector<float> whole = logits(tokens, {24});
  double largest = 0;
  for (const float logit : whole) {
    largest = std::max(largest, std::abs(static_cast<double>(logit)));
  }
  for (const std::vector<std::size_t>& pieces :
       {std::vector<std::size_t>{1}, {23, 1}, {1, 23}, {5}, {3, 1, 7}, {16, 8}}) {
    const std::vector<float> in_pieces = logits(tokens, pieces);
    for (std::size_t i = 0; i < whole.size(); ++i) {
      EXPECT_NEAR(static_cast<double>(in_pieces[i]), static_cast<double>(whole[i]), 1e-5 * largest);
    }
  }
}

TEST_P(GenerateTest, ACacheIsAsGoodAsNewOnceCleared) {
  const std::vector<std::int32_t> tokens = random_tokens(20, 61);
  KvCache cache(replica_.model().architecture(), replica_.working_dtype(), *backend_);
  static_cast<void>(replica_.model().next_logits(tape_, replica_.weights(), random_tokens(24, 61, 9), cache));
  cache.clear();
  const Tensor again = replica_.model().next_logits(tape_, replica_.weights(), tokens, cache);
  EXPECT_TRUE(std::ranges::equal(again.as<float>(), logits(tokens, {20})));
}

// The rule in its plainest form: no cache; when the text outgrows the context, it goes on from half a context.
TEST_P(GenerateTest, GoesOnPastTheContextWithTheNewerHalfOfTheText) {
  for (const std::size_t prompt_length : {1, 20, 24, 25, 60}) {
    const std::vector<std::int32_t> prompt = random_tokens(prompt_length, 61);
    std::vector<std::int32_t> text = prompt;
    std::size_t begin = text.size() > 24 ? text.size() - 24 : 0;
    for (int i = 0; i < 60; ++i) {
      if (text.size() - begin > 24) {
        begin = text.size() - 12;
      }
      const std::vector<float> next = logits(std::span(text).subspan(begin), {text.size() - begin});
      text.push_back(static_cast<std::int32_t>(std::ranges::max_element(next) - next.begin()));
    }
    const std::vector<std::int32_t> expected(text.begin() + static_cast<std::ptrdiff_t>(prompt_length), text.end());
    EXPECT_EQ(generated(prompt, {.max_tokens = 60, .sampling = {.temperature = 0}}), expected)
        << "a prompt of " << prompt_length;
  }
}

TEST_P(GenerateTest, IsAFunctionOfPromptOptionsAndSeed) {
  const std::vector<std::int32_t> prompt = {1, 2, 3};
  const GenerateOptions options{.max_tokens = 40, .sampling = {.temperature = 5.0, .seed = 11}};
  const std::vector<std::int32_t> once = generated(prompt, options);
  EXPECT_EQ(once.size(), 40U);
  EXPECT_EQ(generated(prompt, options), once);
  GenerateOptions other = options;
  other.sampling.seed = 12;
  EXPECT_NE(generated(prompt, other), once);
  GenerateOptions shorter = options;
  shorter.max_tokens = 10;
  EXPECT_EQ(generated(prompt, shorter), std::vector(once.begin(), once.begin() + 10));
}

TEST_P(GenerateTest, EndsAtTheFirstOfTheStopTokensWithoutIt) {
  const std::vector<std::int32_t> prompt = {1, 2, 3};
  GenerateOptions options{.max_tokens = 40, .sampling = {.temperature = 5.0}};
  std::vector<std::int32_t> text = generated(prompt, options);
  for (const std::size_t place : {20, 7}) {
    options.stop_tokens.push_back(text[place]);
    text.erase(std::ranges::find(text, text[place]), text.end());
    EXPECT_EQ(generated(prompt, options), text);
  }
}

TEST_P(GenerateTest, EndsWhenItsReaderHasEnough) {
  int seen = 0;
  generate(replica_, arena_, std::vector<std::int32_t>{1}, {.max_tokens = 40},
           [&](std::int32_t /*token*/) { return ++seen < 3; });
  EXPECT_EQ(seen, 3);
}

TEST_P(GenerateTest, RefusesAnEmptyPromptAndTokensOutsideTheVocabulary) {
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { static_cast<void>(generated({}, {})); }),
            "generate: the prompt is empty");
  EXPECT_THAT(message_of_error(ErrorCode::kUsage,
                               [&] {
                                 static_cast<void>(generated(std::vector<std::int32_t>{1, 61}, {}));
                               }),
              HasSubstr("token 61 at row 1 is outside the vocabulary of 61"));
}

// The weights and activations are rounded alike on both ways; sums are not added alike, so a result may be off by some
// roundings to bf16.
constexpr double kBf16Tolerance = 0.05;

TEST_P(GenerateTest, CachedLogitsInBf16AreThoseOfTheFullForwardPass) {
  Replica narrow(replica_.model().architecture(), Precision::kBf16, *backend_);
  randomize(narrow);
  const std::vector<std::int32_t> tokens = random_tokens(24, 61);
  KvCache cache(narrow.model().architecture(), narrow.working_dtype(), *backend_);
  for (std::size_t length = 1; length <= tokens.size(); ++length) {
    const Tensor logits =
        narrow.model().next_logits(tape_, narrow.weights(), std::span(tokens).subspan(length - 1, 1), cache);
    double sum = 0;
    for (const float logit : logits.as<float>()) {
      sum += std::exp(static_cast<double>(logit));
    }
    for (std::int32_t token = 0; token < 61; ++token) {
      const double actual = std::log(sum) - static_cast<double>(logits.as<float>()[static_cast<std::size_t>(token)]);
      EXPECT_NEAR(actual, loss_of(narrow, std::span(tokens).first(length), token), kBf16Tolerance)
          << "token " << token << " after " << length;
    }
  }
}

TEST_P(GenerateTest, TakesTheLikeliestTokensInBf16) {
  Replica narrow(replica_.model().architecture(), Precision::kBf16, *backend_);
  randomize(narrow);
  std::vector<std::int32_t> text = {1, 2};
  generate(narrow, arena_, std::vector(text), {.max_tokens = 22, .sampling = {.temperature = 0}},
           [&](std::int32_t chosen) {
             std::vector<double> losses;
             for (std::int32_t token = 0; token < 61; ++token) {
               losses.push_back(loss_of(narrow, text, token));
             }
             EXPECT_NEAR(losses[static_cast<std::size_t>(chosen)], std::ranges::min(losses), kBf16Tolerance);
             // At most ten of the 61 would have passed.
             std::ranges::nth_element(losses, losses.begin() + 10);
             EXPECT_GT(losses[10], std::ranges::min(losses) + kBf16Tolerance);
             text.push_back(chosen);
             return true;
           });
  EXPECT_EQ(text.size(), 24U);
}

INSTANTIATE_TEST_SUITE_P(Families, GenerateTest, testing::Values(ModelFamily::kGpt2, ModelFamily::kLlama),
                         [](const auto& family) { return std::string(name_of(family.param)); });

const std::vector<float> kLogits = {0.5F, 2.0F, -1.0F, 2.0F, 1.0F, -30.0F};

std::set<std::int32_t> tokens_drawn(const SamplingOptions& options, int draws = 2000) {
  std::set<std::int32_t> drawn;
  for (int i = 0; i < draws; ++i) {
    drawn.insert(sample_token(kLogits, options, static_cast<std::uint64_t>(i)));
  }
  return drawn;
}

TEST(SampleToken, TakesTheFirstOfTheLikeliestAtTemperatureZero) {
  EXPECT_THAT(tokens_drawn({.temperature = 0}), ElementsAre(1));
  EXPECT_THAT(tokens_drawn({.temperature = 0, .top_k = 3, .top_p = 0.5}), ElementsAre(1));
}

TEST(SampleToken, DrawsAmongTheKLikeliest) {
  EXPECT_THAT(tokens_drawn({.temperature = 1, .top_k = 1}), ElementsAre(1));
  EXPECT_THAT(tokens_drawn({.temperature = 1, .top_k = 2}), ElementsAre(1, 3));
  EXPECT_THAT(tokens_drawn({.temperature = 1, .top_k = 3}), ElementsAre(1, 3, 4));
  EXPECT_THAT(tokens_drawn({.temperature = 1, .top_k = 100}), ElementsAre(0, 1, 2, 3, 4));
}

// Probabilities in descending order: 0.364, 0.364, 0.134, 0.081, 0.018, ...: the last is too rare to be drawn.
TEST(SampleToken, DrawsAmongTheLikeliestThatReachP) {
  EXPECT_THAT(tokens_drawn({.temperature = 1, .top_p = 1e-6}), ElementsAre(1));
  EXPECT_THAT(tokens_drawn({.temperature = 1, .top_p = 0.3}), ElementsAre(1));
  EXPECT_THAT(tokens_drawn({.temperature = 1, .top_p = 0.5}), ElementsAre(1, 3));
  EXPECT_THAT(tokens_drawn({.temperature = 1, .top_p = 0.8}), ElementsAre(1, 3, 4));
  EXPECT_THAT(tokens_drawn({.temperature = 1, .top_k = 1, .top_p = 0.9}), ElementsAre(1));
}

TEST(SampleToken, IsAFunctionOfSeedAndIndex) {
  std::vector<std::int32_t> once;
  std::vector<std::int32_t> other_seed;
  for (std::uint64_t i = 0; i < 100; ++i) {
    once.push_back(sample_token(kLogits, {.temperature = 1, .seed = 5}, i));
    other_seed.push_back(sample_token(kLogits, {.temperature = 1, .seed = 6}, i));
    EXPECT_EQ(sample_token(kLogits, {.temperature = 1, .seed = 5}, i), once.back());
  }
  EXPECT_NE(once, other_seed);
}

TEST(SampleToken, DrawsAsOftenAsTheProbabilitiesSay) {
  constexpr int kDraws = 20'000;
  for (const double temperature : {0.5, 1.0, 2.0}) {
    std::vector<double> probabilities;
    double total = 0;
    for (const float logit : kLogits) {
      probabilities.push_back(std::exp(static_cast<double>(logit) / temperature));
      total += probabilities.back();
    }
    std::vector<int> counts(kLogits.size());
    for (int i = 0; i < kDraws; ++i) {
      const auto token = sample_token(kLogits, {.temperature = temperature}, static_cast<std::uint64_t>(i));
      ++counts[static_cast<std::size_t>(token)];
    }
    for (std::size_t t = 0; t < counts.size(); ++t) {
      const double p = probabilities[t] / total;
      EXPECT_NEAR(counts[t], kDraws * p, 4 * std::sqrt(kDraws * p * (1 - p)) + 1) << "token " << t;
    }
  }
}

TEST(SampleToken, StandsLogitsOfAnySize) {
  const std::vector<float> large = {1e30F, -1e30F, 1e30F};
  EXPECT_NE(sample_token(large, {.temperature = 1e-3}, 0), 1);
  EXPECT_NE(sample_token(large, {.temperature = 100}, 1), 1);
  EXPECT_EQ(sample_token(std::vector<float>{-5.0F}, {.temperature = 1}, 2), 0);
}

}  // namespace
}  // namespace lockstep
