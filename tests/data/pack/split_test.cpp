#include "data/pack/split.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <vector>

#include "base/error.h"
#include "tests/support/error_matcher.h"

namespace lockstep {
namespace {

using Cuts = std::array<std::uint64_t, kSplits + 1>;

TEST(SplitTest, TakesSharesThatAddUpToOne) {
  EXPECT_EQ(checked_shares({0.9, 0.1}), (Shares{0.9, 0.1, 0}));
  EXPECT_EQ(checked_shares({0.7, 0.2, 0.1}), (Shares{0.7, 0.2, 0.1}));
  EXPECT_EQ(active_splits({0.5, 0, 0.5}), 2U);
  const auto error = [](const std::vector<double>& split) {
    return message_of_error(ErrorCode::kUsage, [&] { static_cast<void>(checked_shares(split)); });
  };
  EXPECT_EQ(error({0.9, 0.2}), "the shares of --split add up to 1.1, expected 1");
  EXPECT_EQ(error({1.5, -0.5}), "--split gives train a share of 1.5, expected 0 to 1");
  EXPECT_EQ(error({}), "--split has 0 shares, expected 1 to 3 (train,valid,test)");
  EXPECT_EQ(error({0.25, 0.25, 0.25, 0.25}), "--split has 4 shares, expected 1 to 3 (train,valid,test)");
}

TEST(SplitTest, CutsByPositionInTheOrderTrainValidTest) {
  EXPECT_EQ(cuts_by_position(100, {0.9, 0.05, 0.05}), (Cuts{0, 90, 95, 100}));
  EXPECT_EQ(cuts_by_position(100, {0.5, 0, 0.5}), (Cuts{0, 50, 50, 100}));
  EXPECT_EQ(cuts_by_position(100, {0, 1, 0}), (Cuts{0, 0, 100, 100}));
  EXPECT_EQ(cuts_by_position(100, {1, 0, 0}), (Cuts{0, 100, 100, 100}));
}

TEST(SplitTest, LeavesNoPartEmptyHoweverShortTheDocumentIs) {
  EXPECT_EQ(cuts_by_position(3, {0.9, 0.05, 0.05}), (Cuts{0, 1, 2, 3}));
  EXPECT_EQ(cuts_by_position(2, {0.01, 0.99, 0}), (Cuts{0, 1, 2, 2}));
}

TEST(SplitTest, KeepsTheSharesOfManyDocumentsByBytes) {
  std::vector<SizedDocument> documents;
  std::uint64_t total = 0;
  for (std::uint64_t i = 0; i < 2000; ++i) {
    documents.push_back({document_hash("f", i, 1), 1 + i % 100});
    total += documents.back().size;
  }
  const std::vector<Split> splits = assign_splits(documents, {0.8, 0.15, 0.05});
  std::array<double, kSplits> bytes = {};
  for (std::size_t i = 0; i < documents.size(); ++i) {
    bytes[static_cast<std::size_t>(splits[i])] += static_cast<double>(documents[i].size);
  }
  EXPECT_NEAR(bytes[0] / static_cast<double>(total), 0.80, 0.001);
  EXPECT_NEAR(bytes[1] / static_cast<double>(total), 0.15, 0.001);
  EXPECT_NEAR(bytes[2] / static_cast<double>(total), 0.05, 0.001);
}

TEST(SplitTest, LeavesNoSplitEmptyWithFewDocuments) {
  // Whatever order the hashes give, the large document stays in train and the small ones fill the rest.
  std::array<std::uint64_t, 3> hashes = {1, 2, 3};
  do {
    const std::vector<SizedDocument> documents = {{hashes[0], 1}, {hashes[1], 1'000'000}, {hashes[2], 1}};
    std::vector<Split> splits = assign_splits(documents, {0.9, 0.05, 0.05});
    EXPECT_EQ(splits[1], Split::kTrain);
    std::sort(splits.begin(), splits.end());
    EXPECT_EQ(splits, (std::vector<Split>{Split::kTrain, Split::kValid, Split::kTest}));
  } while (std::next_permutation(hashes.begin(), hashes.end()));
}

TEST(SplitTest, SplitsByHashInProportion) {
  std::array<int, kSplits> counts = {};
  for (std::uint64_t i = 0; i < 100'000; ++i) {
    ++counts[static_cast<std::size_t>(split_by_hash(document_hash("corpus.jsonl", i, 1337), {0.9, 0, 0.1}))];
  }
  EXPECT_NEAR(counts[0], 90'000, 500);
  EXPECT_EQ(counts[1], 0);
  EXPECT_EQ(split_by_hash(~std::uint64_t{0}, {0.5, 0.5, 0}), Split::kValid);
  EXPECT_EQ(split_by_hash(0, {0, 0.5, 0.5}), Split::kValid);
}

TEST(SplitTest, TellsDocumentsApartByFilePlaceAndSeed) {
  EXPECT_NE(document_hash("a", 0, 1), document_hash("b", 0, 1));
  EXPECT_NE(document_hash("a", 0, 1), document_hash("a", 1, 1));
  EXPECT_NE(document_hash("a", 0, 1), document_hash("a", 0, 2));
}

}  // namespace
}  // namespace lockstep
