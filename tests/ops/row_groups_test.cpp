// The order in which a GPU adds the rows of a token.
#include "ops/cuda/row_groups.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace lockstep::cuda {
namespace {

using testing::ElementsAre;

TEST(RowGroups, SortsRowsByTokenAndKeepsTheirOrder) {
  RowGroups groups;
  group_rows(std::vector<std::int32_t>{4, 1, 4, 0, 1, 4}, 6, groups);
  EXPECT_THAT(groups.rows, ElementsAre(3, 1, 4, 0, 2, 5));
  ASSERT_EQ(groups.pieces.size(), 3U);
  const int expected[3][4] = {{0, 1, 0, 1}, {1, 2, 1, 1}, {3, 3, 4, 1}};
  for (std::size_t i = 0; i < 3; ++i) {
    const RowGroups::Piece& piece = groups.pieces[i];
    EXPECT_EQ(piece.begin, expected[i][0]);
    EXPECT_EQ(piece.count, expected[i][1]);
    EXPECT_EQ(piece.token, expected[i][2]);
    EXPECT_EQ(piece.pieces, expected[i][3]);
  }
}

TEST(RowGroups, CutsManyRowsOfOneTokenIntoPiecesThatTheFirstCounts) {
  const std::vector<std::int32_t> tokens(2 * RowGroups::kMostRows + 1, 7);
  RowGroups groups;
  group_rows(tokens, 8, groups);
  ASSERT_EQ(groups.pieces.size(), 3U);
  EXPECT_EQ(groups.pieces[0].pieces, 3);
  EXPECT_EQ(groups.pieces[1].pieces, 0);
  EXPECT_EQ(groups.pieces[2].begin, 2 * RowGroups::kMostRows);
  EXPECT_EQ(groups.pieces[2].count, 1);
  for (std::size_t row = 0; row < tokens.size(); ++row) {
    EXPECT_EQ(groups.rows[row], static_cast<std::int32_t>(row));
  }
}

TEST(RowGroups, BeginWithTheTokensOfSeveralPieces) {
  std::vector<std::int32_t> tokens = {1};
  tokens.insert(tokens.end(), RowGroups::kMostRows + 1, 6);
  tokens.push_back(0);
  RowGroups groups;
  group_rows(tokens, 8, groups);
  std::vector<std::int32_t> order;
  for (const RowGroups::Piece& piece : groups.pieces) {
    order.push_back(piece.token);
  }
  EXPECT_THAT(order, ElementsAre(6, 6, 0, 1));
}

// Tokens of one row more than a piece has are those that need the most pieces of several.
TEST(RowGroups, AreAtMostAsManyPiecesAsThereIsRoomFor) {
  for (const std::int32_t several : {0, 1, 5, 63}) {
    for (const std::int32_t single : {0, 1, 40}) {
      SCOPED_TRACE(testing::Message() << several << " tokens of several pieces, " << single << " of one");
      std::vector<std::int32_t> tokens;
      for (std::int32_t token = 0; token < several + single; ++token) {
        tokens.insert(tokens.end(), token < several ? RowGroups::kMostRows + 1 : 1, token);
      }
      RowGroups groups;
      group_rows(tokens, several + single, groups);
      EXPECT_EQ(groups.pieces.size(), static_cast<std::size_t>(2 * several + single));
      EXPECT_LE(groups.pieces.size(), most_pieces(tokens.size(), several + single));
      EXPECT_LE(static_cast<std::size_t>(2 * several), most_pieces_of_several(tokens.size()));
    }
  }
  EXPECT_EQ(most_pieces_of_several(63 * (RowGroups::kMostRows + 1)), 2U * 63U);
}

TEST(RowGroups, OfNoTokensAreNone) {
  RowGroups groups;
  group_rows(std::vector<std::int32_t>{1}, 2, groups);
  group_rows({}, 2, groups);
  EXPECT_TRUE(groups.rows.empty());
  EXPECT_TRUE(groups.pieces.empty());
}

}  // namespace
}  // namespace lockstep::cuda
