// Shapes and values that do not fit are refused with a message that names the op and both sides.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "op_harness.h"
#include "tests/support/error_matcher.h"

namespace lockstep::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class UsageTest : public testing::Test {
 protected:
  [[nodiscard]] Tensor input(const Shape& shape) {
    return graph_.input(shape, Values(static_cast<std::size_t>(shape.count()), 1));
  }
  [[nodiscard]] Tensor parameter(const Shape& shape) {
    return graph_.parameter(shape, Values(static_cast<std::size_t>(shape.count()), 1));
  }
  template <typename Call>
  [[nodiscard]] static std::string message(const Call& call) {
    return message_of_error(ErrorCode::kUsage, [&] { (void)call(); });
  }

  Graph graph_{Platform()};
  Tape& tape_ = graph_.tape();
};

TEST_F(UsageTest, LinearNamesTheShapesThatDoNotFit) {
  const Linear layer{parameter({4, 5}), Tensor(), WeightLayout::kInOut};
  EXPECT_THAT(message([&] {
                return linear(tape_, input({2, 3}), layer);
              }),
              AllOf(HasSubstr("linear"), HasSubstr("[2, 3]"), HasSubstr("[4, 5]")));
  const Linear with_bias{parameter({3, 5}), parameter({4}), WeightLayout::kInOut};
  EXPECT_THAT(message([&] {
                return linear(tape_, input({2, 3}), with_bias);
              }),
              AllOf(HasSubstr("linear"), HasSubstr("[4]"), HasSubstr("[5]")));
  const Tensor narrow = graph_.constant({2, 4}, Values(8, 1), DType::kBF16);
  EXPECT_THAT(message([&] { return linear(tape_, narrow, layer); }), AllOf(HasSubstr("bf16"), HasSubstr("f32")));
  EXPECT_THAT(message([&] {
                return linear(tape_, input({2, 3}), {parameter({3}), Tensor(), WeightLayout::kInOut});
              }),
              AllOf(HasSubstr("linear"), HasSubstr("[3]")));
}

TEST_F(UsageTest, EmbeddingNamesTheTokenOutsideTheVocabularyAndTheLengthBeyondTheContext) {
  const EmbeddingTables tables{parameter({10, 4}), parameter({6, 4})};
  for (const std::int32_t token : {10, -1}) {
    const std::vector<std::int32_t> tokens = {0, 9, token};
    EXPECT_THAT(message([&] {
                  return embedding(tape_, {tokens, 3, 0}, tables);
                }),
                AllOf(HasSubstr("embedding"), HasSubstr(std::to_string(token)), HasSubstr("row 2"), HasSubstr("10")));
  }
  const std::vector<std::int32_t> tokens(7, 0);
  EXPECT_THAT(message([&] {
                return embedding(tape_, {tokens, 7, 0}, tables);
              }),
              AllOf(HasSubstr("embedding"), HasSubstr("7"), HasSubstr("6")));
  EXPECT_THAT(message([&] {
                return embedding(tape_, {tokens, 7, 0}, {parameter({10, 4}), parameter({9, 5})});
              }),
              AllOf(HasSubstr("embedding"), HasSubstr("[9, 5]"), HasSubstr("[10, 4]")));
}

TEST_F(UsageTest, NormsNameTheShapesThatDoNotFit) {
  EXPECT_THAT(message([&] {
                return norm(tape_, input({2, 3}), {NormKind::kRms, 1e-5F, parameter({4}), Tensor()});
              }),
              AllOf(HasSubstr("norm"), HasSubstr("[4]"), HasSubstr("[2, 3]")));
  EXPECT_THAT(message([&] {
                return norm(tape_, input({2, 3}), {NormKind::kLayer, 1e-5F, parameter({3}), parameter({2})});
              }),
              AllOf(HasSubstr("norm"), HasSubstr("bias [2]"), HasSubstr("[3]")));
  EXPECT_THAT(message([&] {
                return add_norm(tape_, input({2, 3}), input({3, 2}), Dropout(),
                                {NormKind::kRms, 1e-5F, parameter({3}), Tensor()});
              }),
              AllOf(HasSubstr("add_norm"), HasSubstr("[3, 2]"), HasSubstr("[2, 3]")));
}

TEST_F(UsageTest, AttentionNamesTheHeadsThatDoNotFit) {
  EXPECT_THAT(message([&] {
                return self_attention(tape_, input({2, 12}), {1, 3, 2, Dropout()});
              }),
              AllOf(HasSubstr("self_attention"), HasSubstr("3 heads"), HasSubstr("2 key heads")));
  EXPECT_THAT(message([&] {
                return self_attention(tape_, input({2, 13}), {1, 2, 1, Dropout()});
              }),
              AllOf(HasSubstr("self_attention"), HasSubstr("[2, 13]")));
  EXPECT_THAT(message([&] {
                return self_attention(tape_, input({3, 12}), {2, 2, 1, Dropout()});
              }),
              AllOf(HasSubstr("self_attention"), HasSubstr("3 rows"), HasSubstr("batch of 2")));
}

TEST_F(UsageTest, RotaryEmbeddingNamesTheSizesThatDoNotFit) {
  const Tensor frequency = graph_.constant({2}, {1, 1}, DType::kF32);
  EXPECT_THAT(message([&] {
                return rotary_embedding(tape_, input({2, 12}), {1, 3, 2, 0, frequency});
              }),
              AllOf(HasSubstr("rotary_embedding"), HasSubstr("head size 3"), HasSubstr("even")));
  EXPECT_THAT(message([&] {
                return rotary_embedding(tape_, input({2, 12}), {4, 4, 2, 0, frequency});
              }),
              AllOf(HasSubstr("rotary_embedding"), HasSubstr("[2, 12]"), HasSubstr("4 heads of 4")));
  EXPECT_THAT(message([&] {
                return rotary_embedding(tape_, input({2, 12}), {2, 6, 2, 0, frequency});
              }),
              AllOf(HasSubstr("rotary_embedding"), HasSubstr("[2]"), HasSubstr("[3]")));
}

TEST_F(UsageTest, ElementwiseOpsNameWhatTheyCannotTake) {
  EXPECT_THAT(message([&] {
                return add(tape_, input({2, 3}), input({3, 2}));
              }),
              AllOf(HasSubstr("add"), HasSubstr("[2, 3]"), HasSubstr("[3, 2]")));
  EXPECT_THAT(message([&] { return swiglu(tape_, input({2, 3})); }), AllOf(HasSubstr("swiglu"), HasSubstr("[2, 3]")));
  for (const float probability : {-0.1F, 1.0F, std::nanf("")}) {
    EXPECT_THAT(message([&] {
                  return dropout(tape_, input({2}), {probability, {}});
                }),
                AllOf(HasSubstr("dropout"), HasSubstr("0 <= p < 1")));
  }
}

TEST_F(UsageTest, TheLossNamesTheTargetOutsideTheVocabularyAndTheirNumber) {
  const Linear head{parameter({5, 3}), Tensor(), WeightLayout::kOutIn};
  const std::vector<std::int32_t> too_large = {0, 5};
  EXPECT_THAT(message([&] {
                return linear_cross_entropy(tape_, input({2, 3}), head, {too_large, 1});
              }),
              AllOf(HasSubstr("linear_cross_entropy"), HasSubstr("target 5"), HasSubstr("vocabulary of 5")));
  const std::vector<std::int32_t> too_small = {0, -2};
  EXPECT_THAT(message([&] {
                return linear_cross_entropy(tape_, input({2, 3}), head, {too_small, 1});
              }),
              HasSubstr("target -2"));
  const std::vector<std::int32_t> too_few = {0};
  EXPECT_THAT(message([&] {
                return linear_cross_entropy(tape_, input({2, 3}), head, {too_few, 1});
              }),
              AllOf(HasSubstr("1 targets"), HasSubstr("[2, 3]")));
  EXPECT_THAT(message([&] {
                return linear_cross_entropy(tape_, input({2, 4}), head, {too_large, 1});
              }),
              AllOf(HasSubstr("[2, 4]"), HasSubstr("3 inputs")));
}

TEST_F(UsageTest, ARefusedOpRecordsNothing) {
  const Tensor x = input({2, 3});
  (void)message([&] { return add(tape_, x, input({3, 2})); });
  graph_.backward({{x, Values(6, 2)}});
  EXPECT_EQ(graph_.input_gradient(0), Values(6, 2));
}

}  // namespace
}  // namespace lockstep::test
