// Scores of texts against sacrebleu, nltk and rouge_score: tests/golden/text/make_text_scores.py.
#include "trainer/text_scores.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/file.h"

namespace lockstep {
namespace {

using testing::ElementsAre;

constexpr double kRounding = 1e-9;  // of percentages

nlohmann::json golden() {
  return nlohmann::json::parse(read_file(std::filesystem::path(LOCKSTEP_GOLDEN_TEXT) / "text_scores.json"));
}

std::vector<TextPair> pairs_of(const nlohmann::json& cases) {
  std::vector<TextPair> pairs;
  for (const nlohmann::json& pair : cases.at("pairs")) {
    pairs.push_back({pair.at("prediction"), pair.at("reference")});
  }
  return pairs;
}

TEST(TextScoresTest, EqualThoseOfThePythonPackages) {
  const nlohmann::json cases = golden();
  ASSERT_GT(cases.at("pairs").size(), 70U);
  for (const nlohmann::json& expected : cases.at("pairs")) {
    SCOPED_TRACE(expected.dump());
    const TextPair pair = {expected.at("prediction"), expected.at("reference")};
    EXPECT_EQ(is_exact_match(pair), expected.at("exact").get<bool>());
    EXPECT_EQ(bleu_words(pair.prediction), expected.at("bleu_words").get<std::vector<std::string>>());
    EXPECT_EQ(rouge_words(pair.prediction), expected.at("rouge_words").get<std::vector<std::string>>());
    EXPECT_NEAR(corpus_bleu({{pair}}), expected.at("bleu").get<double>(), kRounding);
    EXPECT_NEAR(character_bleu(pair), expected.at("bleu_4").get<double>(), kRounding);
    const RougeScores scores = rouge(pair);
    EXPECT_NEAR(scores.rouge_1, expected.at("rouge_1").get<double>(), kRounding);
    EXPECT_NEAR(scores.rouge_2, expected.at("rouge_2").get<double>(), kRounding);
    EXPECT_NEAR(scores.rouge_l, expected.at("rouge_l").get<double>(), kRounding);
  }
}

TEST(TextScoresTest, OfACorpusAreSacrebleusAndTheMeansOfTheOthers) {
  const nlohmann::json expected = golden();
  const std::vector<TextPair> pairs = pairs_of(expected);
  for (const nlohmann::json& corpus : expected.at("corpora")) {
    const auto begin = corpus.at("begin").get<std::size_t>();
    const auto end = corpus.at("end").get<std::size_t>();
    const TextScores scores = score_texts(std::span(pairs).subspan(begin, end - begin));
    EXPECT_NEAR(scores.bleu, corpus.at("bleu").get<double>(), kRounding) << begin;
    TextScores means;
    for (std::size_t i = begin; i < end; ++i) {
      const nlohmann::json& pair = expected.at("pairs")[i];
      const double weight = 1.0 / static_cast<double>(end - begin);
      means.exact_match += pair.at("exact").get<bool>() ? 100 * weight : 0;
      means.bleu_4 += pair.at("bleu_4").get<double>() * weight;
      means.rouge.rouge_1 += pair.at("rouge_1").get<double>() * weight;
      means.rouge.rouge_2 += pair.at("rouge_2").get<double>() * weight;
      means.rouge.rouge_l += pair.at("rouge_l").get<double>() * weight;
    }
    EXPECT_NEAR(scores.exact_match, means.exact_match, kRounding);
    EXPECT_NEAR(scores.bleu_4, means.bleu_4, kRounding);
    EXPECT_NEAR(scores.rouge.rouge_1, means.rouge.rouge_1, kRounding);
    EXPECT_NEAR(scores.rouge.rouge_2, means.rouge.rouge_2, kRounding);
    EXPECT_NEAR(scores.rouge.rouge_l, means.rouge.rouge_l, kRounding);
  }
}

// Which a model can write where the vocabulary has tokens of single bytes.
TEST(TextScoresTest, TakeBytesThatAreNoUtf8ForCharacters) {
  const TextPair pair = {"\xff\xfe ab\xe4\xbd", "\xff\xfe ab\xe4\xbd"};
  EXPECT_TRUE(is_exact_match(pair));
  EXPECT_FALSE(is_exact_match({"\xff", ""}));
  EXPECT_DOUBLE_EQ(character_bleu(pair), 100);
  EXPECT_THAT(bleu_words(pair.prediction), ElementsAre("\xff\xfe", "ab\xe4\xbd"));
  EXPECT_THAT(rouge_words(pair.prediction), ElementsAre("ab"));
}

}  // namespace
}  // namespace lockstep
