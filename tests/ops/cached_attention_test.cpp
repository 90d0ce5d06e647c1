// Attention over a cache of keys and values: the rows of self_attention, however the sequence is cut into calls.
#include <gtest/gtest.h>

#include <algorithm>

#include "op_harness.h"
#include "reference.h"

namespace lockstep::test {
namespace {

struct Heads {
  std::int64_t heads, kv_heads, head_dim;
  [[nodiscard]] std::int64_t qkv_width() const { return (heads + 2 * kv_heads) * head_dim; }
  [[nodiscard]] std::int64_t kv_width() const { return kv_heads * head_dim; }
};

class CachedAttentionTest : public OpTest {
 protected:
  // A cache whose unused rows are finite but matter if they are read.
  [[nodiscard]] Tensor cache(std::int64_t rows, const Heads& heads) {
    return tensor({rows, heads.kv_width()}, Values(static_cast<std::size_t>(rows * heads.kv_width()), 99));
  }
  [[nodiscard]] Tensor tensor(const Shape& shape, const Values& values) {
    Tensor result = tape_.make(shape, dtype());
    fill(result, values);
    return result;
  }

  std::shared_ptr<Backend> backend_ = backend_of(GetParam().device, 2);
  Arena arena_{[this](std::size_t size_bytes) { return backend_->allocate(size_bytes); }};
  Tape tape_{*backend_, arena_, nullptr};
  RandomValues random_{31};
};

TEST_P(CachedAttentionTest, GivesTheRowsOfSelfAttentionHoweverTheSequenceIsCut) {
  const Heads cases[] = {{1, 1, 1}, {2, 2, 8}, {4, 2, 5}, {3, 1, 33}};
  const std::vector<std::int64_t> cuts[] = {{1}, {7}, {64, 1}, {65, 3, 1}, {130}};
  constexpr std::int64_t kTokens = 130;
  for (const Heads& heads : cases) {
    const Tensor qkv = tensor({kTokens, heads.qkv_width()}, random_(kTokens * heads.qkv_width()));
    const Values expected = to_values(self_attention(tape_, qkv, {1, heads.heads, heads.kv_heads, Dropout()}));
    ASSERT_TRUE(near(expected,
                     reference::attention(to_values(qkv), {1, kTokens, heads.heads, heads.kv_heads, heads.head_dim}),
                     tolerance(2)));
    for (const std::vector<std::int64_t>& cut : cuts) {
      SCOPED_TRACE(fmt::format("{} heads of {}, pieces of {}", heads.heads, heads.head_dim, cut.front()));
      const Tensor k = cache(192, heads);
      const Tensor v = cache(192, heads);
      Values actual;
      std::int64_t cached = 0;
      for (std::size_t i = 0; cached < kTokens; ++i) {
        const std::int64_t rows = std::min(cut[i % cut.size()], kTokens - cached);
        const Tensor out =
            cached_attention(tape_, qkv.slice(cached, rows), {heads.heads, heads.kv_heads, cached, k, v});
        const Values values = to_values(out);
        actual.insert(actual.end(), values.begin(), values.end());
        cached += rows;
      }
      EXPECT_TRUE(near(actual, expected, tolerance(2)));
    }
  }
}

TEST_P(CachedAttentionTest, AppendsKeysAndValuesAndLeavesTheRestOfTheCacheAlone) {
  const Heads heads{4, 2, 3};
  const Tensor k = cache(64, heads);
  const Tensor v = cache(64, heads);
  const Values qkv = random_(2 * heads.qkv_width());
  (void)cached_attention(tape_, tensor({2, heads.qkv_width()}, qkv), {4, 2, 5, k, v});
  Values expected_k(64 * 6, 99);
  Values expected_v(64 * 6, 99);
  for (std::size_t row = 0; row < 2; ++row) {
    for (std::size_t i = 0; i < 6; ++i) {
      expected_k[(5 + row) * 6 + i] = qkv[row * 24 + 12 + i];
      expected_v[(5 + row) * 6 + i] = qkv[row * 24 + 18 + i];
    }
  }
  EXPECT_EQ(to_values(k), expected_k);
  EXPECT_EQ(to_values(v), expected_v);
}

TEST_P(CachedAttentionTest, OfNoRowsIsEmptyAndLeavesTheCacheAlone) {
  const Heads heads{2, 1, 3};
  const Tensor k = cache(64, heads);
  const Tensor v = cache(64, heads);
  for (const std::int64_t cached : {0, 5, 64}) {
    const Tensor out = cached_attention(tape_, tape_.make({0, heads.qkv_width()}, dtype()), {2, 1, cached, k, v});
    EXPECT_EQ(out.shape(), (Shape{0, 6}));
  }
  EXPECT_EQ(to_values(k), Values(64 * 3, 99));
  EXPECT_EQ(to_values(v), Values(64 * 3, 99));
}

INSTANTIATE_TEST_SUITE_P(Ops, CachedAttentionTest, testing::ValuesIn(all_platforms()), name_of_platform);

}  // namespace
}  // namespace lockstep::test
