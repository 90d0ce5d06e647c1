// The hand-written scanners against PCRE2 running the expression that they stand for.
#include "data/text/pattern_scanner.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "base/file.h"
#include "data/text/regex.h"
#include "tests/data/text/random_text.h"

namespace lockstep {
namespace {

using Lengths = std::vector<std::size_t>;

class PatternScannerTest : public testing::TestWithParam<KnownPattern> {
 protected:
  PatternScannerTest() : regex_(expression_of(GetParam()), "test"), scratch_(regex_) {}

  static Lengths scanned(std::string_view text) {
    Lengths lengths;
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = piece_end(GetParam(), text, begin);
      lengths.push_back(end - begin);
      begin = end;
    }
    return lengths;
  }

  Lengths matched(std::string_view text) {
    Lengths lengths;
    for (std::size_t begin = 0; begin < text.size();) {
      const auto match = regex_.find(text, begin, scratch_);
      EXPECT_TRUE(match && match->begin == begin) << "the expressions leave no gaps";
      lengths.push_back(match->end - begin);
      begin = match->end;
    }
    return lengths;
  }

  Regex regex_;
  Regex::Scratch scratch_;
};

TEST_P(PatternScannerTest, AgreesWithTheExpressionOnSnippets) {
  RandomText random(1);
  for (int i = 0; i < 20000; ++i) {
    const std::string text = random.snippets(1 + random.below(12));
    ASSERT_EQ(scanned(text), matched(text)) << text;
  }
}

TEST_P(PatternScannerTest, AgreesWithTheExpressionOnRandomAscii) {
  RandomText random(2);
  for (int i = 0; i < 20000; ++i) {
    std::string text;
    for (std::uint32_t length = 1 + random.below(12); length > 0; --length) {
      text.push_back(static_cast<char>(random.below(128)));
    }
    ASSERT_EQ(scanned(text), matched(text)) << testing::PrintToString(text);
  }
}

TEST_P(PatternScannerTest, AgreesWithTheExpressionOnShortTextsOfTheCriticalCharacters) {
  // All texts of up to five of these.
  constexpr auto kCharacters =
      std::to_array<std::string_view>({" ", "\n", "\t", "'", "s", "L", "7", "!", "\u3000", "\u017F"});
  std::vector<std::string> texts = {""};
  for (std::size_t begin = 0, length = 1; length <= 5; ++length) {
    const std::size_t end = texts.size();
    for (; begin < end; ++begin) {
      for (const std::string_view character : kCharacters) {
        texts.push_back(texts[begin] + std::string(character));
      }
    }
  }
  ASSERT_EQ(texts.size(), 111111U);
  for (const std::string& text : texts) {
    ASSERT_EQ(scanned(text), matched(text)) << testing::PrintToString(text);
  }
}

TEST_P(PatternScannerTest, AgreesWithTheExpressionOnASourceFile) {
  const std::string text = read_file(std::filesystem::path(LOCKSTEP_GOLDEN_TEXT) / "make_tokenizers.py");
  EXPECT_EQ(scanned(text), matched(text));
}

TEST_P(PatternScannerTest, IsFoundByItsExpression) {
  EXPECT_EQ(known_pattern(expression_of(GetParam())), GetParam());
  EXPECT_EQ(known_pattern(std::string(expression_of(GetParam())) + "|x"), std::nullopt);
}

INSTANTIATE_TEST_SUITE_P(Patterns, PatternScannerTest,
                         testing::Values(KnownPattern::kGpt2, KnownPattern::kLlama3, KnownPattern::kQwen2),
                         [](const auto& pattern) {
                           return pattern.param == KnownPattern::kGpt2     ? "gpt2"
                                  : pattern.param == KnownPattern::kLlama3 ? "llama3"
                                                                           : "qwen2";
                         });

// PCRE2 and utf8proc each have their own Unicode tables. Where they differ, one of them must be too old to know the
// character.
TEST(CharacterClasses, AreThoseOfPcre2ForEveryCharacterThatBothKnow) {
  const Regex letter("\\p{L}", "test");
  const Regex number("\\p{N}", "test");
  const Regex space("\\s", "test");
  const Regex unassigned("\\p{Cn}", "test");
  Regex::Scratch scratch(letter);
  const auto is = [&](const Regex& regex, const std::string& text) { return regex.find(text, 0, scratch).has_value(); };
  std::size_t disagreements = 0;
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) {
      continue;
    }
    std::string text;
    append_utf8(text, c);
    const CharClass expected = is(space, text)    ? CharClass::kSpace
                               : is(letter, text) ? CharClass::kLetter
                               : is(number, text) ? CharClass::kNumber
                                                  : CharClass::kOther;
    if (class_of(c) != expected) {
      ++disagreements;
      ASSERT_TRUE(class_of(c) == CharClass::kOther || is(unassigned, text)) << std::hex << static_cast<unsigned>(c);
    }
  }
  EXPECT_LT(disagreements, 20000U);
}

}  // namespace
}  // namespace lockstep
