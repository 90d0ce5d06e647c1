#include "data/text/regex.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace lockstep {
namespace {

std::vector<std::string> matches(std::string_view expression, std::string_view text) {
  const Regex regex(expression, "test");
  Regex::Scratch scratch(regex);
  std::vector<std::string> found;
  for (std::size_t begin = 0; begin < text.size();) {
    const auto match = regex.find(text, begin, scratch);
    if (!match) {
      break;
    }
    found.emplace_back(text.substr(match->begin, match->end - match->begin));
    begin = match->end;
  }
  return found;
}

using Texts = std::vector<std::string>;

// The expected values are those of Hugging Face's `tokenizers`, which uses Oniguruma.
TEST(Regex, TakesWhiteSpaceAsUnicodeDefinesIt) {
  EXPECT_EQ(matches(R"(\s)", "a\u180Eb\u0085c\u001Cd\u3000e"), (Texts{"\u0085", "\u3000"}));
  EXPECT_EQ(matches(R"(\S+)", "a\u180Eb\u0085c"), (Texts{"a\u180Eb", "c"}));
  EXPECT_EQ(matches(R"([^\s]+)", "a\u180Eb\u0085c"), (Texts{"a\u180Eb", "c"}));
  EXPECT_EQ(matches(R"([\S]+)", "a\u180Eb\u0085c"), (Texts{"a\u180Eb", "c"}));
  EXPECT_EQ(matches(R"(x[\s\d]+)", "x 1\u30002y"), (Texts{"x 1\u30002"}));
}

TEST(Regex, EndsLinesAtEveryLineBreak) {
  EXPECT_EQ(matches("a$", "a\na"), (Texts{"a", "a"}));
  EXPECT_EQ(matches("^b", "a\nb\nb"), (Texts{"b", "b"}));
  EXPECT_EQ(matches(".", "a\nb"), (Texts{"a", "b"}));
  EXPECT_EQ(matches(".+", "a\rb\nc"), (Texts{"a\rb", "c"}));
}

TEST(Regex, IgnoresCaseBeyondAscii) { EXPECT_EQ(matches("(?i:'s)", "'S'\u017F's"), (Texts{"'S", "'\u017F", "'s"})); }

TEST(Regex, SkipsEmptyMatches) { EXPECT_EQ(matches("x*", "axxb"), (Texts{"xx"})); }

TEST(Regex, MatchesALongTextAsAWhole) {
  const std::string text(1'000'000, 'a');
  EXPECT_EQ(matches("(?:a|b)+", text), (Texts{text}));
}

struct Refusal {
  const char* expression;
  const char* message;
};

class RefusedRegexTest : public testing::TestWithParam<Refusal> {};

TEST_P(RefusedRegexTest, NamesWhatIsNotSupported) {
  try {
    const Regex regex(GetParam().expression, "t.json");
    FAIL() << "expected an error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
    EXPECT_STREQ(error.what(), GetParam().message);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Expressions, RefusedRegexTest,
    testing::Values(
        Refusal{"a\\w", "t.json: the pattern \"a\\w\" uses \\w at byte 1, which is not supported"},
        Refusal{"a\\", "t.json: the pattern \"a\\\" uses a \\ at its end at byte 1, which is not supported"},
        Refusal{"(a)\\1", "t.json: the pattern \"(a)\\1\" uses \\1 at byte 3, which is not supported"},
        Refusal{"[a[b]]",
                "t.json: the pattern \"[a[b]]\" uses a character class in a character class at byte 2, which is "
                "not supported"},
        Refusal{"[a&&b]",
                "t.json: the pattern \"[a&&b]\" uses an intersection of character classes at byte 2, which is "
                "not supported"},
        Refusal{"[]a]", "t.json: the pattern \"[]a]\" uses an empty character class at byte 1, which is not supported"},
        Refusal{"(?m:a)", "t.json: the pattern \"(?m:a)\" uses \"(?m\" at byte 0, which is not supported"},
        Refusal{"(*UTF)a", "t.json: the pattern \"(*UTF)a\" uses \"(*U\" at byte 0, which is not supported"},
        Refusal{"a{,3}", "t.json: the pattern \"a{,3}\" uses {, at byte 1, which is not supported"},
        Refusal{"a{2}+", "t.json: the pattern \"a{2}+\" uses }+ at byte 3, which is not supported"},
        Refusal{"(a", "t.json: the pattern \"(a\" cannot be compiled: missing closing parenthesis"}));

TEST(Regex, GivesUpOnAnExpressionThatBacktracksWithoutEnd) {
  const Regex regex("(?:a+)+[bd]", "t.json");
  Regex::Scratch scratch(regex);
  try {
    static_cast<void>(regex.find(std::string(200, 'a') + "c", 0, scratch));
    FAIL() << "expected an error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
    EXPECT_STREQ(error.what(),
                 "t.json: the pattern \"(?:a+)+[bd]\" gave up on a text of 201 bytes: match limit exceeded");
  }
}

}  // namespace
}  // namespace lockstep
