#include "data/pack/text_cuts.h"

#include <gtest/gtest.h>

#include <string>

namespace lockstep {
namespace {

TEST(TextCutsTest, CutsAtTheLastBeginningOfALine) {
  EXPECT_EQ(line_cut("one\ntwo\nthree", 0, 9), 8U);
  EXPECT_EQ(line_cut("one\ntwo\nthree", 0, 8), 8U);
  EXPECT_EQ(line_cut("one\ntwo\nthree", 0, 7), 4U);
  EXPECT_EQ(line_cut("one\ntwo\nthree", 3, 7), 4U);
}

TEST(TextCutsTest, CutsBetweenCharactersWhereThereIsNoLine) {
  EXPECT_EQ(line_cut("abcdef", 0, 3), 3U);
  EXPECT_EQ(line_cut("one\ntwo", 4, 6), 6U) << "the line feed lies before the part";
  EXPECT_EQ(line_cut("a\xE2\x82\xAC"
                     "b",
                     0, 3),
            1U)
      << "inside the euro sign";
  EXPECT_EQ(line_cut("\x80\x80\x80\x80\x80\x80", 0, 5), 5U) << "not UTF-8";
  const std::string long_line(kLineWindow + 100, 'x');
  EXPECT_EQ(line_cut("\n" + long_line, 0, kLineWindow + 50), kLineWindow + 50);
}

TEST(TextCutsTest, CutsWordsBeforeWhiteSpaceThatFollowsALetter) {
  EXPECT_EQ(word_cut("int main() {\n", 0, 8), 3U);
  EXPECT_EQ(word_cut("int main\nfoo", 0, 10), 8U);
  EXPECT_EQ(word_cut("1 2 3\n4 5 6", 0, 8), 6U) << "no letters: a line";
}

TEST(TextCutsTest, LeavesSomethingOnBothSides) {
  for (const std::string text : {"ab", "\n\n", "a ", "\xC3\xA9"}) {
    EXPECT_EQ(line_cut(text, 0, 1), 1U);
    EXPECT_EQ(word_cut(text, 0, 1), 1U);
  }
}

}  // namespace
}  // namespace lockstep
