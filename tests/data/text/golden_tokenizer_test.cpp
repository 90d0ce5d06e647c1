// Six forms of tokenizer.json against the ids that Hugging Face's `tokenizers` gives; tests/golden/text has the script.
#include <gtest/gtest.h>

#include "data/text/encoder.h"
#include "data/text/tokenizer_model.h"
#include "data/text/unicode.h"
#include "tests/data/text/golden_text.h"

namespace lockstep {
namespace {

class GoldenTokenizerTest : public testing::TestWithParam<const char*> {
 protected:
  Tokenizer tokenizer_ = golden_tokenizer(GetParam());
};

class Pieces : public PieceSink {
 public:
  void take(std::string_view piece) override { lengths.push_back(piece.size()); }
  std::vector<std::size_t> lengths;
};

TEST_P(GoldenTokenizerTest, CutsEveryTextIntoTheSamePieces) {
  const PreTokenizer& pretokenizer = tokenizer_.model().pretokenizer;
  PreTokenizer::Scratch scratch(pretokenizer);
  for (const auto& test_case : golden_cases()) {
    const auto text = test_case.at("text").get<std::string>();
    Pieces pieces;
    if (!text.empty()) {
      pretokenizer.split(text, scratch, pieces);
    }
    EXPECT_EQ(nlohmann::json(pieces.lengths), test_case.at("forms").at(GetParam()).at("pieces"))
        << test_case.at("text");
  }
}

TEST_P(GoldenTokenizerTest, GivesTheSameIdsWithSpecialTokensAsText) {
  Encoder encoder(tokenizer_);
  for (const auto& test_case : golden_cases()) {
    std::vector<std::uint32_t> ids;
    encoder.encode(test_case.at("text").get<std::string>(), ids);
    EXPECT_EQ(nlohmann::json(ids), test_case.at("forms").at(GetParam()).at("as_text")) << test_case.at("text");
  }
}

TEST_P(GoldenTokenizerTest, GivesTheSameIdsWithSpecialTokensRecognized) {
  Encoder encoder(tokenizer_);
  std::size_t with_special_tokens = 0;
  for (const auto& test_case : golden_cases()) {
    const auto& expected = test_case.at("forms").at(GetParam());
    with_special_tokens += expected.contains("recognized") ? 1 : 0;
    std::vector<std::uint32_t> ids;
    encoder.encode(test_case.at("text").get<std::string>(), ids, SpecialTokens::kRecognized);
    EXPECT_EQ(nlohmann::json(ids), expected.at(expected.contains("recognized") ? "recognized" : "as_text"))
        << test_case.at("text");
  }
  EXPECT_GE(with_special_tokens, 1U);
}

TEST_P(GoldenTokenizerTest, DecodesToTheTextOrItsNormalForm) {
  for (const auto& test_case : golden_cases()) {
    const auto text = test_case.at("text").get<std::string>();
    const std::string expected = tokenizer_.model().definition.nfc ? to_nfc(text) : text;
    EXPECT_EQ(tokenizer_.decode(encoded(tokenizer_, text)), expected);
    EXPECT_EQ(tokenizer_.decode(encoded(tokenizer_, text, SpecialTokens::kRecognized)), expected);
  }
}

TEST_P(GoldenTokenizerTest, WritesItselfSoThatReadingGivesTheSameTokenizer) {
  TokenizerDefinition definition = tokenizer_.model().definition;
  definition.json.clear();  // so that to_json() has to write
  const Tokenizer rewritten(build_model(definition, "rewritten"));
  const Tokenizer read = Tokenizer::from_json(rewritten.to_json(), "rewritten");
  EXPECT_EQ(read.fingerprint(), tokenizer_.fingerprint());
  EXPECT_EQ(read.end_of_text(), tokenizer_.end_of_text());
  EXPECT_EQ(read.beginning_of_text(), tokenizer_.beginning_of_text());
}

TEST_P(GoldenTokenizerTest, ReturnsTheJsonThatItWasReadFrom) {
  EXPECT_EQ(tokenizer_.to_json(), read_file(golden_text_path(std::string(GetParam()) + ".json")));
}

INSTANTIATE_TEST_SUITE_P(Forms, GoldenTokenizerTest,
                         testing::Values("gpt2", "llama3", "qwen2", "smollm", "o200k", "splits"),
                         [](const auto& form) { return std::string(form.param); });

TEST(GoldenTokenizers, NameTheirSpecialTokens) {
  const Tokenizer llama3 = golden_tokenizer("llama3");
  EXPECT_EQ(llama3.vocab_size(), 903U);
  EXPECT_EQ(llama3.beginning_of_text(), 900U);
  EXPECT_EQ(llama3.end_of_text(), 901U);
  EXPECT_EQ(llama3.added_token("<|eot_id|>"), 902U);
  EXPECT_TRUE(llama3.is_special(902));
  EXPECT_FALSE(llama3.is_special(0));

  const Tokenizer qwen2 = golden_tokenizer("qwen2");
  EXPECT_EQ(qwen2.end_of_text(), 900U);
  EXPECT_EQ(qwen2.beginning_of_text(), std::nullopt);
  EXPECT_EQ(qwen2.added_token("<tool_call>"), 903U);
  EXPECT_FALSE(qwen2.is_special(903)) << "added, but shown in generated text";
  EXPECT_EQ(qwen2.added_token("<|eot_id|>"), std::nullopt);
}

}  // namespace
}  // namespace lockstep
