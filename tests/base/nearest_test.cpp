#include "base/nearest.h"

#include <gtest/gtest.h>

#include <vector>

namespace lockstep {
namespace {

TEST(EditDistanceTest, CountsInsertionsDeletionsReplacementsAndSwaps) {
  EXPECT_EQ(edit_distance("", ""), 0U);
  EXPECT_EQ(edit_distance("", "abc"), 3U);
  EXPECT_EQ(edit_distance("abc", ""), 3U);
  EXPECT_EQ(edit_distance("layers", "layers"), 0U);
  EXPECT_EQ(edit_distance("layrs", "layers"), 1U);
  EXPECT_EQ(edit_distance("layesr", "layers"), 1U);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3U);
}

TEST(NearestTest, FindsTheWordThatWasMeant) {
  const std::vector<std::string> names = {"--tokenizer", "--format", "--out", "--seed"};
  EXPECT_EQ(nearest("--tokeniser", names), "--tokenizer");
  EXPECT_EQ(nearest("--fromat", names), "--format");
  EXPECT_EQ(did_you_mean("--sede", names), "; did you mean --seed?");
}

TEST(NearestTest, SuggestsNothingThatIsTooDifferent) {
  const std::vector<std::string> names = {"layers", "heads"};
  EXPECT_EQ(nearest("temperature", names), std::nullopt);
  EXPECT_EQ(did_you_mean("temperature", names), "");
  EXPECT_EQ(nearest("x", {}), std::nullopt);
}

TEST(NearestTest, TakesTheFirstOfEquals) {
  const std::vector<std::string> names = {"ab", "ac"};
  EXPECT_EQ(nearest("ad", names), "ab");
}

}  // namespace
}  // namespace lockstep
