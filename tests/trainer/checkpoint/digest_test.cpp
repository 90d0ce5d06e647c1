#include "trainer/checkpoint/digest.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/trainer/checkpoint/training_state.h"

namespace lockstep {
namespace {

Hash128 digest_in_shards(const TrainingState& state, int world) {
  Hash128 sum;
  for (int rank = world; rank-- > 0;) {
    StateDigest part(state.layout);
    const ElementRange range = state.layout.shard(rank, world);
    const auto share = [range](const std::vector<float>& values) {
      return std::span(values).subspan(range.begin, range.size());
    };
    part.add(StateKind::kExpAvgSq, range.begin, share(state.exp_avg_sq));
    part.add(StateKind::kMaster, range.begin, share(state.master));
    part.add(StateKind::kExpAvg, range.begin, share(state.exp_avg));
    sum = StateDigest::combine(sum, part.sum());
  }
  return StateDigest::finish(state.layout, sum);
}

TEST(Digest, IsTheSameForAnyNumberOfShardsInAnyOrder) {
  const TrainingState state(small_layout());
  for (const int world : {1, 2, 3, 5, 8, 64}) {
    EXPECT_EQ(digest_in_shards(state, world).hex(), state.digest().hex()) << world;
  }
}

TEST(Digest, DoesNotDependOnTheOrderOfTheParameters) {
  EXPECT_EQ(TrainingState(small_layout()).digest().hex(), TrainingState(reversed_layout()).digest().hex());
}

TEST(Digest, IgnoresPadding) {
  TrainingState state(small_layout());
  const Hash128 before = state.digest();
  state.master[37] = 1.0F;  // behind head.bias
  EXPECT_EQ(state.digest(), before);
}

TEST(Digest, ChangesWithEveryBitOfWeightsAndMoments) {
  TrainingState state(small_layout());
  const Hash128 before = state.digest();
  for (auto* values : {&state.master, &state.exp_avg, &state.exp_avg_sq}) {
    for (const std::size_t element : {std::size_t{0}, std::size_t{36}, state.layout.offset(1) + 959}) {
      auto* bits = reinterpret_cast<unsigned char*>(&(*values)[element]);
      *bits ^= 1;
      EXPECT_NE(state.digest(), before) << element;
      *bits ^= 1;
    }
  }
  EXPECT_EQ(state.digest(), before);
}

TEST(Digest, TellsKindsParametersAndPositionsApart) {
  const ParameterLayout layout({{"a", {32}, false, {}}, {"b", {32}, false, {}}});
  std::vector<float> first(layout.total());
  first[0] = 1.0F;
  std::vector<float> chunk_later(layout.total());
  chunk_later[16] = 1.0F;
  std::vector<float> other_parameter(layout.total());
  other_parameter[32] = 1.0F;
  const std::vector<float> zero(layout.total());
  std::vector<std::string> digests = {
      digest_of(layout, {zero, zero, zero}).hex(),        digest_of(layout, {first, zero, zero}).hex(),
      digest_of(layout, {zero, first, zero}).hex(),       digest_of(layout, {zero, zero, first}).hex(),
      digest_of(layout, {chunk_later, zero, zero}).hex(), digest_of(layout, {other_parameter, zero, zero}).hex()};
  std::sort(digests.begin(), digests.end());
  EXPECT_EQ(std::unique(digests.begin(), digests.end()), digests.end());
}

TEST(Digest, ChangesWithNamesAndShapes) {
  const std::vector<float> zero(16);
  const auto digest = [&](ParameterSpec spec) {
    return digest_of(ParameterLayout({std::move(spec)}), {zero, zero, zero});
  };
  const Hash128 base = digest({"w", {2, 3}, false, {}});
  EXPECT_EQ(digest({"w", {2, 3}, true, {}}), base);  // whether it decays is no part of the state
  EXPECT_NE(digest({"v", {2, 3}, false, {}}), base);
  EXPECT_NE(digest({"w", {3, 2}, false, {}}), base);
}

// Made by tests/golden/formats/digest.py, which follows docs/checkpoint-format.md with another xxHash binding.
TEST(Digest, MatchesTheSpecificationsExample) {
  const ParameterLayout layout({{"b", {3}, false, {}}, {"w", {4, 5}, true, {}}});
  std::vector<float> master(layout.total());
  std::vector<float> exp_avg(layout.total());
  std::vector<float> exp_avg_sq(layout.total());
  for (std::size_t i = 0; i < layout.size(); ++i) {
    for (std::uint64_t k = 0; k < layout.count(i); ++k) {
      master[layout.offset(i) + k] = static_cast<float>(k) + 1.0F;
      exp_avg[layout.offset(i) + k] = 0.5F * static_cast<float>(k);
      exp_avg_sq[layout.offset(i) + k] = 0.25F;
    }
  }
  EXPECT_EQ(digest_of(layout, {master, exp_avg, exp_avg_sq}).hex(), "78bb6efe5c5a75bfc7921a0fd8404436");
}

}  // namespace
}  // namespace lockstep
