#include "trainer/flat_parameters.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/error_matcher.h"

namespace lockstep {
namespace {

using testing::HasSubstr;

ParameterLayout example() {
  return ParameterLayout({{"bias", {5}, false, {}},
                          {"empty", {0, 3}, false, {}},
                          {"qkv", {6, 4}, true, {{"q", {2, 4}, 0}, {"k", {2, 4}, 8}, {"v", {2, 4}, 16}}},
                          {"scalar", {}, false, {}}});
}

TEST(ParameterLayout, PlacesEachParameterAtAMultipleOfSixteenElements) {
  const ParameterLayout layout = example();
  EXPECT_EQ(layout.size(), 4U);
  EXPECT_EQ(layout.offset(0), 0U);
  EXPECT_EQ(layout.offset(1), 16U);
  EXPECT_EQ(layout.offset(2), 16U);
  EXPECT_EQ(layout.offset(3), 48U);
  EXPECT_EQ(layout.count(2), 24U);
  EXPECT_EQ(layout.count(3), 1U);
  EXPECT_EQ(layout.total(), 64U);
  EXPECT_EQ(layout.parameters(), 30U);
}

TEST(ParameterLayout, FindsParametersByNameAndByElement) {
  const ParameterLayout layout = example();
  EXPECT_EQ(layout.find("qkv"), 2U);
  EXPECT_EQ(layout.find("q"), std::nullopt);
  EXPECT_EQ(layout.index_at(0), 0U);
  EXPECT_EQ(layout.index_at(15), 0U);
  EXPECT_EQ(layout.index_at(16), 2U);  // the empty parameter at 16 has no element
  EXPECT_EQ(layout.index_at(47), 2U);
  EXPECT_EQ(layout.index_at(63), 3U);
}

TEST(ParameterLayout, ExportsAPlainParameterUnderItsOwnName) {
  const ParameterLayout layout = example();
  ASSERT_EQ(layout.specs()[0].exports.size(), 1U);
  EXPECT_EQ(layout.specs()[0].exports[0].hf_name, "bias");
  EXPECT_EQ(layout.specs()[0].exports[0].shape, std::vector<std::int64_t>{5});
}

TEST(ParameterLayout, ShardsCoverEverythingOnceInNearlyEqualAlignedParts) {
  const ParameterLayout layout({{"w", {1000}, true, {}}});
  for (const int world : {1, 2, 3, 7, 64, 100}) {
    std::uint64_t covered = 0;
    for (int rank = 0; rank < world; ++rank) {
      const ElementRange range = layout.shard(rank, world);
      EXPECT_EQ(range.begin, covered);
      EXPECT_EQ(range.end % ParameterLayout::kAlignment, 0U);
      EXPECT_LE(range.size(), (1008 / static_cast<unsigned>(world) / 16 + 1) * 16);
      covered = range.end;
    }
    EXPECT_EQ(covered, layout.total());
  }
}

TEST(ParameterLayout, RefusesNamesThatStandTwice) {
  EXPECT_THAT(message_of_error(ErrorCode::kUsage,
                               [] {
                                 ParameterLayout({{"w", {1}, false, {}}, {"w", {1}, false, {}}});
                               }),
              HasSubstr("parameter w stands twice"));
  EXPECT_THAT(
      message_of_error(ErrorCode::kUsage,
                       [] {
                         ParameterLayout({{"a", {1}, false, {{"x", {1}, 0}}}, {"b", {1}, false, {{"x", {1}, 0}}}});
                       }),
      HasSubstr("export x stands twice"));
}

TEST(ParameterLayout, RefusesExportsThatDoNotCoverTheirParameter) {
  const auto with_exports = [](std::vector<ParameterExport> exports) {
    return message_of_error(ErrorCode::kUsage, [&] { ParameterLayout({{"w", {4}, false, exports}}); });
  };
  EXPECT_THAT(with_exports({{"a", {2}, 0}}), HasSubstr("its exports cover 2 of 4 elements"));
  EXPECT_THAT(with_exports({{"a", {2}, 0}, {"b", {1}, 3}}), HasSubstr("export b begins at element 3, expected 2"));
  EXPECT_THAT(with_exports({{"a", {5}, 0}}), HasSubstr("reaches past the parameter's 4 elements"));
  EXPECT_THAT(with_exports({{"a", {-2}, 0}}), HasSubstr("impossible shape [-2]"));
}

TEST(ParameterLayout, RefusesShapesThatAreNegativeOrTooLarge) {
  EXPECT_THAT(message_of_error(ErrorCode::kUsage,
                               [] {
                                 ParameterLayout({{"w", {-1}, false, {}}});
                               }),
              HasSubstr("the shape [-1] is impossible"));
  EXPECT_THAT(message_of_error(ErrorCode::kUsage,
                               [] {
                                 ParameterLayout({{"w", {std::int64_t{1} << 32, std::int64_t{1} << 32}, false, {}}});
                               }),
              HasSubstr("is impossible"));
}

TEST(CountOf, MultipliesWithoutOverflow) {
  EXPECT_EQ(count_of({}), 1U);
  EXPECT_EQ(count_of({3, 4}), 12U);
  EXPECT_EQ(count_of({std::int64_t{1} << 62, 4, 0}), 0U);
  EXPECT_EQ(count_of({std::int64_t{1} << 62, 2}), std::nullopt);
  EXPECT_EQ(count_of({0, -1}), std::nullopt);
}

}  // namespace
}  // namespace lockstep
