// The tape's bookkeeping and the arena's memory.
#include "ops/tape.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "base/error.h"
#include "op_harness.h"
#include "tests/support/error_matcher.h"

namespace lockstep::test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

const Platform kPlatform;

Linear square_layer(Graph& graph, double weight) {
  return {graph.parameter({1, 1}, {weight}), Tensor(), WeightLayout::kInOut};
}

TEST(TapeTest, AnnouncesEachParameterOnceWhenItsLastGradientIsThereInBackwardOrder) {
  Graph graph(kPlatform);
  const Linear first = square_layer(graph, 2);   // parameter 0, used last in the backward pass
  const Linear shared = square_layer(graph, 3);  // parameter 1, used twice
  const Linear last = square_layer(graph, 5);    // parameter 2
  const Linear unused = square_layer(graph, 7);  // parameter 3
  Tensor y = linear(graph.tape(), graph.input({1, 1}, {1}), shared);
  y = linear(graph.tape(), y, first);
  y = linear(graph.tape(), y, shared);
  y = linear(graph.tape(), y, last);
  graph.backward({{y, {1}}});
  EXPECT_THAT(graph.ready(), ElementsAre(2, 0, 1));
  EXPECT_THAT(graph.gradient_of(first.weight), ElementsAre(3 * 3 * 5));
  EXPECT_THAT(graph.gradient_of(shared.weight), ElementsAre(2 * 3 * 2 * 5));
  EXPECT_THAT(graph.gradient_of(last.weight), ElementsAre(2 * 3 * 3));
  EXPECT_THAT(graph.input_gradient(0), ElementsAre(2 * 3 * 3 * 5));
}

TEST(TapeTest, TableSharedByEmbeddingAndHeadGetsBothGradientsBeforeItIsAnnounced) {
  const std::vector<std::int32_t> tokens = {0, 2};
  const std::vector<std::int32_t> targets = {1, 2};
  const Values table_values = {0.5, -1, 1, 0.25, -0.5, 2};
  const auto gradients = [&](bool shared) {
    Graph graph(kPlatform);
    const Tensor table = graph.parameter({3, 2}, table_values);
    const Tensor head = shared ? table : graph.parameter({3, 2}, table_values);
    const Tensor x = embedding(graph.tape(), {tokens, 2, 0}, {table, Tensor()});
    const Loss loss = linear_cross_entropy(graph.tape(), x, {head, Tensor(), WeightLayout::kOutIn}, {targets, 1});
    graph.tape().backward(loss.value);
    EXPECT_EQ(graph.ready(), shared ? (std::vector<int>{0}) : (std::vector<int>{1, 0}));
    Values sum = graph.gradient_of(table);
    if (!shared) {
      const Values other = graph.gradient_of(head);
      std::ranges::transform(sum, other, sum.begin(), std::plus<>());
    }
    return sum;
  };
  EXPECT_TRUE(near(gradients(true), gradients(false), 1e-6));
}

TEST(TapeTest, GradientsOfAValueUsedSeveralTimesAddUp) {
  Graph graph(kPlatform);
  const Tensor x = graph.input({3}, {1, 2, 3});
  const Tensor once = add(graph.tape(), x, x);
  const Tensor twice = add(graph.tape(), once, x);
  graph.backward({{twice, {1, 10, 100}}, {once, {1, 1, 1}}, {x, {0, 0, 7}}});
  EXPECT_THAT(graph.input_gradient(0), ElementsAre(3 + 2, 30 + 2, 300 + 2 + 7));
}

TEST(TapeTest, ValueThatNothingDependsOnGetsNoGradient) {
  Graph graph(kPlatform);
  const Tensor used = graph.input({2}, {1, 2});
  const Tensor unused = graph.input({2}, {1, 2});
  graph.backward({{used, {3, 4}}});
  EXPECT_THAT(graph.input_gradient(0), ElementsAre(3, 4));
  EXPECT_THAT(graph.input_gradient(1), IsEmpty());
  EXPECT_NE(unused.variable, Tensor::kNone);
}

TEST(TapeTest, IsReadyForTheNextStepAfterBackwardAndAfterClear) {
  Graph graph(kPlatform);
  const Linear layer = square_layer(graph, 3);
  for (const double x : {2.0, 4.0}) {
    const Tensor y = linear(graph.tape(), graph.input({1, 1}, {x}), layer);
    graph.backward({{y, {1}}});
    EXPECT_THAT(graph.gradient_of(layer.weight), ElementsAre(x));  // replaced, not added to the last step's
  }
  (void)linear(graph.tape(), graph.input({1, 1}, {9}), layer);
  graph.tape().clear();
  const Tensor y = linear(graph.tape(), graph.input({1, 1}, {5}), layer);
  graph.backward({{y, {1}}});
  EXPECT_THAT(graph.gradient_of(layer.weight), ElementsAre(5));
  EXPECT_THAT(graph.ready(), ElementsAre(0, 0, 0));
}

TEST(TapeTest, RecomputesAPartWithTheSameGradientsAndAnnouncements) {
  Graph graph(kPlatform);
  const Linear first = square_layer(graph, 2);
  const Linear inner = square_layer(graph, 3);
  const Linear outer = square_layer(graph, 5);
  int calls = 0;
  Tensor x = linear(graph.tape(), graph.input({1, 1}, {1}), first);
  const auto [y, unused] = graph.tape().recomputed([&graph, &calls, x, inner] {
    ++calls;
    const Tensor product = linear(graph.tape(), x, inner);
    return std::array{add(graph.tape(), product, x), product};
  });
  EXPECT_EQ(calls, 1);
  EXPECT_THAT(to_values(y), ElementsAre(2 * 3 + 2));
  const Tensor z = linear(graph.tape(), y, outer);
  graph.backward({{z, {1}}});
  EXPECT_EQ(calls, 2);
  EXPECT_THAT(graph.ready(), ElementsAre(2, 1, 0));
  EXPECT_THAT(graph.gradient_of(outer.weight), ElementsAre(8));
  EXPECT_THAT(graph.gradient_of(inner.weight), ElementsAre(5 * 2));
  EXPECT_THAT(graph.gradient_of(first.weight), ElementsAre(5 * (3 + 1)));
  EXPECT_THAT(graph.input_gradient(0), ElementsAre(5 * (3 + 1) * 2));
  EXPECT_NE(unused.variable, Tensor::kNone);
}

TEST(TapeTest, RecordsAgainAfterARecomputedPartThatThrew) {
  Graph graph(kPlatform);
  const auto part = [&graph]() -> std::array<Tensor, 1> {
    EXPECT_FALSE(graph.tape().is_recording());
    fail(ErrorCode::kUsage, "no");
  };
  EXPECT_THROW(static_cast<void>(graph.tape().recomputed(part)), Error);
  EXPECT_TRUE(graph.tape().is_recording());
}

TEST(TapeTest, RefusesAParameterOfARecomputedPartThatIsUsedLaterToo) {
  Graph graph(kPlatform);
  const Linear shared = square_layer(graph, 2);
  const Tensor x = graph.input({1, 1}, {1});
  const auto [y] = graph.tape().recomputed([&graph, x, shared] { return std::array{linear(graph.tape(), x, shared)}; });
  const Tensor z = linear(graph.tape(), y, shared);
  EXPECT_EQ(message_of_error(ErrorCode::kUsage,
                             [&] {
                               graph.backward({{z, {1}}});
                             }),
            "backward: parameter 0 is used in a recomputed part and elsewhere");
}

Tensor frozen(Tensor parameter) {
  parameter.parameter = Tensor::kNone;
  return parameter;
}

// A frozen beginning, one trained layer, and a frozen layer behind it, which the gradient goes through.
TEST(TapeTest, OnlyWhatLeadsToATrainedParameterIsRecorded) {
  for (const bool recompute : {false, true}) {
    Graph graph(kPlatform);
    Linear first = square_layer(graph, 2);
    const Linear trained = square_layer(graph, 3);
    Linear last = square_layer(graph, 5);
    first.weight = frozen(first.weight);
    last.weight = frozen(last.weight);
    const Tensor gain = frozen(graph.parameter({1}, {7}));
    const auto layer = [&](const Tensor& x, const Linear& weight) {
      const auto compute = [&graph, x, weight] { return std::array{linear(graph.tape(), x, weight)}; };
      return (recompute ? graph.tape().recomputed(compute) : compute())[0];
    };
    const Tensor x = graph.constant({2, 1}, {1, -2}, DType::kF32);
    const Tensor y = layer(x, first);
    EXPECT_EQ(y.variable, Tensor::kNone);
    EXPECT_EQ(norm(graph.tape(), y, {NormKind::kRms, 0, gain, Tensor()}).variable, Tensor::kNone);
    EXPECT_EQ(swiglu(graph.tape(), graph.constant({1, 2}, {1, 2}, DType::kF32)).variable, Tensor::kNone);
    const Tensor z = layer(layer(y, trained), last);
    EXPECT_GE(z.variable, 0);
    graph.backward({{z, {1, 10}}});
    EXPECT_THAT(graph.ready(), ElementsAre(1));
    EXPECT_THAT(graph.gradient_of(trained.weight), ElementsAre((1 * 1 - 10 * 2) * 2 * 5));
  }
}

// One of a kernel's two gradients is asked for.
TEST(TapeTest, AFrozenGainBesideATrainedBiasIsLeftAlone) {
  Graph graph(kPlatform);
  const Tensor gain = graph.parameter({2}, {3, 3});
  const Tensor bias = graph.parameter({2}, {0, 0});
  const Tensor x = graph.constant({2, 2}, {1, -1, 2, -2}, DType::kF32);
  const SumAndNorm result = add_norm(graph.tape(), x, x, {}, {NormKind::kLayer, 0, frozen(gain), bias});
  EXPECT_EQ(result.sum.variable, Tensor::kNone);
  graph.backward({{result.y, {1, 2, 30, 40}}});
  EXPECT_THAT(graph.ready(), ElementsAre(1));
  EXPECT_THAT(graph.gradient_of(bias), ElementsAre(31, 42));
  EXPECT_TRUE(std::isnan(graph.gradient_of(gain)[0]));
}

// The loss's own products, too.
TEST(TapeTest, AFrozenHeadGivesItsInputAGradientAndAFrozenModelGivesNone) {
  const std::vector<std::int32_t> targets = {1, 0};
  for (const bool has_variable : {true, false}) {
    Graph graph(kPlatform);
    const Tensor weight = graph.parameter({2, 1}, {0.5, -0.5});
    const Tensor x = has_variable ? graph.input({2, 1}, {1, 2}) : graph.constant({2, 1}, {1, 2}, DType::kF32);
    const Loss loss =
        linear_cross_entropy(graph.tape(), x, {frozen(weight), Tensor(), WeightLayout::kOutIn}, {targets, 1});
    EXPECT_EQ(loss.value.variable != Tensor::kNone, has_variable);
    EXPECT_NEAR(loss.sum(), std::log1p(std::exp(1)) + std::log1p(std::exp(-2)), 1e-6);
    if (has_variable) {
      graph.tape().backward(loss.value);
      EXPECT_TRUE(near(graph.input_gradient(0), {1 / (1 + std::exp(-1)), -1 / (1 + std::exp(2))}, 1e-6));
    }
    EXPECT_TRUE(std::isnan(graph.gradient_of(weight)[0]));
  }
}

TEST(TapeTest, WithoutASinkNothingIsRecorded) {
  const std::unique_ptr<Backend> backend = make_cpu_backend(1);
  Arena arena;
  Tape tape(*backend, arena, nullptr);
  const Tensor x = tape.make_variable({4}, DType::kF32);
  EXPECT_FALSE(tape.is_recording());
  EXPECT_EQ(x.variable, Tensor::kNone);
  fill(x, {1, 2, 3, 4});
  const Tensor y = add(tape, x, x);
  EXPECT_EQ(to_values(y), (Values{2, 4, 6, 8}));
  EXPECT_THAT(message_of_error(ErrorCode::kUsage, [&] { tape.backward(y); }), HasSubstr("does not record"));
}

TEST(TapeTest, BackwardStartsFromAScalarOfThisTape) {
  Graph graph(kPlatform);
  const Tensor vector = graph.input({3}, {1, 2, 3});
  EXPECT_THAT(message_of_error(ErrorCode::kUsage, [&] { graph.tape().backward(vector); }), HasSubstr("[3]"));
  const Tensor foreign = graph.constant({1}, {1}, DType::kF32);
  EXPECT_THAT(message_of_error(ErrorCode::kUsage, [&] { graph.tape().backward(foreign); }), HasSubstr("scalar"));
}

TEST(ArenaTest, SteadyStepTakesNothingFromTheSystem) {
  for (const Platform& platform : all_platforms()) {
    RandomValues random(3);
    Graph graph(platform);
    const Linear layers[] = {{graph.parameter({64, 256}, random(64 * 256)), Tensor(), WeightLayout::kInOut},
                             {graph.parameter({256, 64}, random(64 * 256)), Tensor(), WeightLayout::kInOut}};
    const Norm layer_norm{NormKind::kRms, 1e-5F, graph.parameter({64}, random(64)), Tensor()};
    std::size_t reserved_bytes = 0;
    for (int step = 0; step < 6; ++step) {
      Tensor x = graph.input({700, 64}, Values(700 * 64, 0.5));
      for (int block = 0; block < 4; ++block) {
        const Tensor hidden = gelu(graph.tape(), linear(graph.tape(), norm(graph.tape(), x, layer_norm), layers[0]));
        x = add(graph.tape(), x, linear(graph.tape(), hidden, layers[1]));
      }
      graph.backward({{x, Values(700 * 64, 1)}});
      if (step < 2) {
        reserved_bytes = graph.arena().reserved_bytes();
      }
      EXPECT_EQ(graph.arena().reserved_bytes(), reserved_bytes) << step;
    }
    EXPECT_GT(reserved_bytes, 0U);
  }
}

TEST(ArenaTest, BlocksAreAlignedAndReusedWhenTheLastReferenceGoes) {
  Arena arena;
  const void* address = nullptr;
  {
    const Tensor tensor(arena, {1000}, DType::kF32);
    const Tensor copy = tensor;  // NOLINT(performance-unnecessary-copy-initialization): shares the memory
    EXPECT_EQ(copy.data(), tensor.data());
    EXPECT_FALSE(tensor.is_unique());
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensor.data()) % 64, 0U);
    const Tensor other(arena, {1000}, DType::kF32);
    EXPECT_NE(other.data(), tensor.data());
    address = other.data();
  }
  const Tensor again(arena, {1000}, DType::kF32);
  EXPECT_TRUE(again.is_unique());
  const Tensor and_again(arena, {1000}, DType::kF32);
  EXPECT_TRUE(again.data() == address || and_again.data() == address);
}

TEST(ArenaTest, EveryBlockIsAsLargeAsAskedFor) {
  Arena arena;
  std::vector<Tensor> tensors;
  for (std::int64_t size = 1; size < 300000; size = size * 9 / 8 + 1) {
    tensors.emplace_back(arena, Shape{size}, DType::kU8);
    std::ranges::fill(tensors.back().as<std::uint8_t>(), static_cast<std::uint8_t>(tensors.size()));
  }
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    EXPECT_THAT(tensors[i].as<std::uint8_t>(), testing::Each(static_cast<std::uint8_t>(i + 1))) << tensors[i].count();
  }
}

TEST(TensorTest, SlicesShareTheMemoryOfTheirRows) {
  Arena arena;
  const Tensor tensor(arena, {4, 3, 2}, DType::kF32);
  const Tensor rows = tensor.slice(1, 2);
  EXPECT_EQ(rows.shape(), (Shape{2, 3, 2}));
  EXPECT_EQ(rows.data<float>(), tensor.data<float>() + 6);
  EXPECT_EQ(tensor.rows(), 12);
  EXPECT_EQ(tensor.reshaped({6, 4}).data(), tensor.data());
  EXPECT_EQ(to_string(rows.shape()), "[2, 3, 2]");
}

}  // namespace
}  // namespace lockstep::test
