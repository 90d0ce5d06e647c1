// Ops that work in chunks or blocks, at sizes that take several of them with a shorter last one, against their
// definitions in double precision; and that they hold no more than some blocks at a time.
#include <gtest/gtest.h>

#include <numeric>

#include "op_harness.h"
#include "ops/cpu/attention.h"
#include "reference.h"

namespace lockstep::test {
namespace {

class BlocksTest : public OpTest {
 protected:
  RandomValues random_{23};
};

// The loss takes chunks of 256 rows at this vocabulary: two whole ones and one of 2 rows.
constexpr std::int32_t kVocabulary = 8'200;
constexpr std::int64_t kRows = 514;
constexpr std::int64_t kWidth = 5;

// Every seventh row is not trained on, nor is the first of the last chunk.
std::vector<std::int32_t> some_targets() {
  std::vector<std::int32_t> targets(kRows);
  for (std::int32_t row = 0; row < kRows; ++row) {
    targets[static_cast<std::size_t>(row)] = row % 7 == 3 || row == 512 ? -1 : (row * 7919) % kVocabulary;
  }
  targets.back() = kVocabulary - 1;
  return targets;
}

TEST_P(BlocksTest, TheLossOverSeveralChunksHasTheGradientsOfItsDefinition) {
  const std::vector<std::int32_t> targets = some_targets();
  const float scale = 1.0F / 64;
  for (const WeightLayout layout : {WeightLayout::kInOut, WeightLayout::kOutIn}) {
    const Values x = random_(kRows * kWidth);
    const Values weight = random_(kVocabulary * kWidth);
    Graph graph(GetParam());
    const Tensor input = graph.input({kRows, kWidth}, x);
    const Shape shape = layout == WeightLayout::kInOut ? Shape{kWidth, kVocabulary} : Shape{kVocabulary, kWidth};
    const Linear head{graph.parameter(shape, weight), Tensor(), layout};
    const Loss loss = linear_cross_entropy(graph.tape(), input, head, {targets, scale});

    const Values losses =
        reference::cross_entropy(reference::linear(x, weight, {}, kWidth, kVocabulary, layout), targets);
    const double sum = std::accumulate(losses.begin(), losses.end(), 0.0);
    EXPECT_NEAR(loss.sum(), sum, loss_tolerance() * sum);
    EXPECT_EQ(loss.count, std::ranges::count_if(targets, [](std::int32_t target) { return target >= 0; }));
    const auto expected = reference::loss_gradients(x, weight, targets, kWidth, layout, static_cast<double>(scale));
    graph.tape().backward(loss.value);
    EXPECT_TRUE(near(graph.input_gradient(0), expected.dx, tolerance(2)));
    EXPECT_TRUE(near(graph.gradient_of(head.weight), expected.dweight, tolerance(2)));
  }
}

TEST_P(BlocksTest, ATableSharedWithTheEmbeddingGetsTheGradientsOfEveryChunkAndOfTheEmbedding) {
  const std::vector<std::int32_t> targets = some_targets();
  std::vector<std::int32_t> tokens(kRows);
  for (std::int32_t row = 0; row < kRows; ++row) {
    tokens[static_cast<std::size_t>(row)] = row % 5 == 0 ? kVocabulary - 1 : (row * 104'729) % kVocabulary;
  }
  const Values table = random_(kVocabulary * kWidth);
  const float scale = 0.5F;
  Graph graph(GetParam());
  const Tensor parameter = graph.parameter({kVocabulary, kWidth}, table);
  const Tensor x = embedding(graph.tape(), {tokens, kRows, 0}, {parameter, Tensor()});
  const Loss loss =
      linear_cross_entropy(graph.tape(), x, {parameter, Tensor(), WeightLayout::kOutIn}, {targets, scale});

  const Values rows = reference::embedding(tokens, table, {}, kWidth, kRows, 0);
  auto expected =
      reference::loss_gradients(rows, table, targets, kWidth, WeightLayout::kOutIn, static_cast<double>(scale));
  for (std::size_t row = 0; row < tokens.size(); ++row) {
    for (std::size_t i = 0; i < kWidth; ++i) {
      expected.dweight[static_cast<std::size_t>(tokens[row]) * kWidth + i] += expected.dx[row * kWidth + i];
    }
  }
  graph.tape().backward(loss.value);
  EXPECT_TRUE(near(graph.gradient_of(parameter), expected.dweight, tolerance(2)));
  EXPECT_EQ(graph.ready(), std::vector<int>{0});
}

// 337 MB of logits; a chunk of them is 8 MB, and the arena takes memory in pieces of 64 MB.
TEST_P(BlocksTest, TheLossNeverHoldsAllLogits) {
  if (GetParam().device == DeviceKind::kCuda) {
    GTEST_SKIP() << "a GPU's chunks are larger than all of these";
  }
  constexpr std::int64_t kManyRows = 20 * kRows;
  Graph graph(GetParam());
  const Tensor x = graph.input({kManyRows, 1}, random_(kManyRows));
  const Linear head{graph.parameter({kVocabulary, 1}, random_(kVocabulary)), Tensor(), WeightLayout::kOutIn};
  const std::vector<std::int32_t> targets(kManyRows, 1);
  const Loss loss = linear_cross_entropy(graph.tape(), x, head, {targets, 1});
  graph.tape().backward(loss.value);
  EXPECT_LT(graph.arena().reserved_bytes(), static_cast<std::size_t>(kManyRows * kVocabulary) * sizeof(float) / 5);
}

// 643 tokens are five blocks of 128 query rows and one of 3.
TEST_P(BlocksTest, SelfAttentionOverSeveralBlocksHasTheGradientsOfItsDefinition) {
  const reference::AttentionSizes sizes{2, 643, 4, 2, 5};
  const std::int64_t rows = sizes.batch * sizes.tokens;
  const std::int64_t width = (sizes.heads + 2 * sizes.kv_heads) * sizes.head_dim;
  for (const float probability : {0.0F, 0.3F}) {
    const Dropout dropout{probability, {5, 6}};
    const Values qkv = random_(rows * width);
    Graph graph(GetParam());
    const Tensor y = self_attention(graph.tape(), graph.input({rows, width}, qkv),
                                    {sizes.batch, sizes.heads, sizes.kv_heads, dropout});
    EXPECT_TRUE(near(to_values(y), reference::attention(qkv, sizes, dropout), tolerance(2)));
    const Values dy = random_(y.count());
    graph.backward({{y, dy}});
    EXPECT_TRUE(near(graph.input_gradient(0), reference::attention_gradient(qkv, dy, sizes, dropout), tolerance(4)));
  }
}

// 200 tokens are more than a block.
TEST_P(BlocksTest, SelfAttentionOfSequencesOfManyLengthsStaysWithinEach) {
  const std::vector<std::int64_t> lengths = {3, 200, 1, 57};
  reference::AttentionSizes sizes{1, 0, 4, 2, 5};
  const std::int64_t width = (sizes.heads + 2 * sizes.kv_heads) * sizes.head_dim;
  const std::int64_t rows = std::reduce(lengths.begin(), lengths.end());
  const Values qkv = random_(rows * width);
  Graph graph(GetParam());
  const Tensor y =
      self_attention(graph.tape(), graph.input({rows, width}, qkv),
                     {.heads = sizes.heads, .kv_heads = sizes.kv_heads, .dropout = {}, .lengths = lengths});
  const Values dy = random_(y.count());
  Values expected;
  Values expected_gradient;
  for (std::int64_t begin = 0; const std::int64_t length : lengths) {
    sizes.tokens = length;
    const Values part(qkv.begin() + begin * width, qkv.begin() + (begin + length) * width);
    const std::int64_t out_width = sizes.heads * sizes.head_dim;
    const Values dy_part(dy.begin() + begin * out_width, dy.begin() + (begin + length) * out_width);
    const Values of_part = reference::attention(part, sizes, {});
    const Values gradient = reference::attention_gradient(part, dy_part, sizes, {});
    expected.insert(expected.end(), of_part.begin(), of_part.end());
    expected_gradient.insert(expected_gradient.end(), gradient.begin(), gradient.end());
    begin += length;
  }
  EXPECT_TRUE(near(to_values(y), expected, tolerance(2)));
  graph.backward({{y, dy}});
  EXPECT_TRUE(near(graph.input_gradient(0), expected_gradient, tolerance(4)));
}

// The formulas that long sequences are compared with are those of the definition.
TEST(AttentionReference, HasTheGradientOfTheDefinition) {
  const reference::AttentionSizes sizes{2, 5, 4, 2, 3};
  const Dropout dropout{0.3F, {5, 6}};
  RandomValues random(7);
  const Values qkv = random(sizes.batch * sizes.tokens * (sizes.heads + 2 * sizes.kv_heads) * sizes.head_dim);
  const Values dy = random(sizes.batch * sizes.tokens * sizes.heads * sizes.head_dim);
  const auto function = [&](const std::vector<Values>& v) { return reference::attention(v[0], sizes, dropout); };
  EXPECT_TRUE(
      near(reference::attention_gradient(qkv, dy, sizes, dropout), reference::gradients(function, {qkv}, dy)[0], 1e-8));
}

TEST_P(BlocksTest, AttentionWorksInMemoryThatGrowsWithTheSequenceAndNotWithItsSquareOrTheBatch) {
  if (GetParam().device == DeviceKind::kCuda) {
    GTEST_SKIP() << "a GPU's attention needs no scratch memory but a number a row";
  }
  AttentionShape shape;
  shape.batch = 16;
  shape.heads = 12;
  shape.kv_heads = 4;
  shape.head_dim = 64;
  for (const std::int64_t tokens : {1024, 8192}) {
    shape.query_length = shape.key_length = shape.key_capacity = tokens;
    // A thread holds at most four matrices of 128 rows in f32 or less, and a key head's sums.
    const std::size_t bound = static_cast<std::size_t>(tokens) * (4 * 128 + 3 * 64) * sizeof(float);
    EXPECT_LE(cpu::attention_forward_scratch_bytes(shape, dtype()), bound);
    EXPECT_LE(cpu::attention_backward_scratch_bytes(shape, dtype()), bound);
  }
}

// 155 MB of T x T scores; the arena takes memory in pieces of 64 MB.
TEST_P(BlocksTest, AttentionKeepsNothingOfTheSizeOfItsScores) {
  constexpr std::int64_t kTokens = 1100;
  constexpr std::int64_t kHeads = 16;
  constexpr std::int64_t kBatch = 2;
  Graph graph(GetParam());
  const Tensor qkv = graph.input({kBatch * kTokens, 3 * kHeads}, random_(kBatch * kTokens * 3 * kHeads));
  const Tensor y = self_attention(graph.tape(), qkv, {kBatch, kHeads, kHeads, Dropout()});
  graph.backward({{y, Values(static_cast<std::size_t>(y.count()), 1)}});
  EXPECT_LT(graph.arena().reserved_bytes(), std::size_t{kBatch * kHeads * kTokens * kTokens} * sizeof(float) / 2);
}

INSTANTIATE_TEST_SUITE_P(Ops, BlocksTest, testing::ValuesIn(all_platforms()), name_of_platform);

}  // namespace
}  // namespace lockstep::test
