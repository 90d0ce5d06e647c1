#include "trainer/model/transformer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <set>
#include <vector>

#include "comm/self_communicator.h"
#include "tests/support/error_matcher.h"
#include "tests/trainer/model/recording_backend.h"
#include "tests/trainer/model/trainee.h"
#include "tests/trainer/small_models.h"
#include "trainer/grad_reducer.h"
#include "trainer/replica.h"

namespace lockstep {
namespace {

using testing::ElementsAreArray;
using testing::HasSubstr;

std::unique_ptr<Trainee> make_trainee(const Architecture& architecture, Precision precision = Precision::kFp32,
                                      int threads = 2) {
  return std::make_unique<Trainee>(architecture, precision, make_cpu_backend(threads));
}

Architecture untied_or_gpt2(ModelFamily family) { return family == ModelFamily::kGpt2 ? small_gpt2() : small_llama(); }

class TransformerTest : public testing::TestWithParam<ModelFamily> {
 protected:
  [[nodiscard]] static Architecture architecture() { return untied_or_gpt2(GetParam()); }
};

TEST_P(TransformerTest, GivesTheSameBitsEachTimeAndOnAnyNumberOfThreads) {
  const auto one = make_trainee(architecture(), Precision::kFp32, 1);
  const double loss = one->compute_gradient({.probability = 0.1F, .seed = 1, .micro_batch = 2});
  const std::vector<float> gradient = one->gradient();
  EXPECT_EQ(one->compute_gradient({.probability = 0.1F, .seed = 1, .micro_batch = 2}), loss);
  EXPECT_EQ(one->gradient(), gradient);
  for (const int threads : {2, 3}) {
    const auto other = make_trainee(architecture(), Precision::kFp32, threads);
    EXPECT_EQ(other->compute_gradient({.probability = 0.1F, .seed = 1, .micro_batch = 2}), loss);
    EXPECT_EQ(other->gradient(), gradient) << threads << " threads";
  }
}

TEST_P(TransformerTest, TakesNoMemoryFromTheSystemInASteadyStep) {
  for (const Precision precision : {Precision::kFp32, Precision::kBf16, Precision::kFp16}) {
    const auto trainee = make_trainee(architecture(), precision);
    static_cast<void>(trainee->compute_gradient({.probability = 0.1F}));
    const std::size_t reserved = trainee->arena.reserved_bytes();
    for (std::uint64_t step = 1; step < 5; ++step) {
      static_cast<void>(trainee->compute_gradient({.probability = 0.1F, .micro_batch = step}));
      EXPECT_EQ(trainee->arena.reserved_bytes(), reserved);
    }
  }
}

// The arena hands memory out in slabs; that blocks come back shows where a slab would have been used up otherwise.
TEST_P(TransformerTest, GivesAllMemoryOfAStepBack) {
  const auto trainee = make_trainee(architecture());
  for (int step = 0; step < 200; ++step) {
    static_cast<void>(trainee->compute_gradient());
  }
  EXPECT_EQ(trainee->arena.reserved_bytes(), std::size_t{64} << 20);
}

TEST_P(TransformerTest, DrawsDropoutFromAStreamOfItsOwnAtEveryPlaceOfEveryMicroBatch) {
  auto own = std::make_unique<RecordingBackend>(2);
  RecordingBackend& recorder = *own;
  Trainee trainee(architecture(), Precision::kFp32, std::move(own));
  std::set<RecordingBackend::Key> seen;
  std::size_t calls = 0;
  for (const std::uint64_t seed : {1, 2}) {
    for (const std::uint64_t micro_batch : {0, 1, 7}) {
      recorder.forward_keys.clear();
      static_cast<void>(trainee.compute_gradient({.probability = 0.2F, .seed = seed, .micro_batch = micro_batch}));
      // The embedding; in each block the attention's probabilities and the two branches. With or without noting the
      // gradients of dropout itself, which draw from the same key.
      const std::set<RecordingBackend::Key> keys(recorder.forward_keys.begin(), recorder.forward_keys.end());
      EXPECT_EQ(keys.size(), 1U + 2U * 3U);
      seen.insert(keys.begin(), keys.end());
      calls += keys.size();
    }
  }
  EXPECT_EQ(seen.size(), calls);
}

TEST_P(TransformerTest, DrawsTheSameDropoutAgainInTheBackwardPassAndInASecondRun) {
  auto own = std::make_unique<RecordingBackend>(2);
  RecordingBackend& recorder = *own;
  Trainee trainee(architecture(), Precision::kFp32, std::move(own));
  const Transformer::DropoutStream stream{.probability = 0.2F, .seed = 3, .micro_batch = 4};
  static_cast<void>(trainee.compute_gradient(stream));
  const std::vector<RecordingBackend::Key> forward = recorder.forward_keys;
  for (const RecordingBackend::Key& key : recorder.backward_keys) {
    EXPECT_TRUE(std::ranges::find(forward, key) != forward.end());
  }
  EXPECT_EQ(recorder.backward_keys.size(), 2U);
  recorder.forward_keys.clear();
  static_cast<void>(trainee.compute_gradient(stream));
  EXPECT_THAT(recorder.forward_keys, ElementsAreArray(forward));
}

TEST_P(TransformerTest, LeavesDropoutOutWhereItsProbabilityIsZero) {
  const auto trainee = make_trainee(architecture());
  const double loss = trainee->compute_gradient({.probability = 0, .seed = 1, .micro_batch = 1});
  EXPECT_EQ(trainee->compute_gradient({.probability = 0, .seed = 2, .micro_batch = 9}), loss);
  EXPECT_NE(trainee->compute_gradient({.probability = 0.5F, .seed = 1, .micro_batch = 1}), loss);
}

// Central differences of the loss along one random direction in the space of all weights.
TEST_P(TransformerTest, HasTheGradientThatTheLossHas) {
  const auto trainee = make_trainee(architecture());
  const Transformer::DropoutStream stream{.probability = 0.1F, .seed = 3, .micro_batch = 4};
  static_cast<void>(trainee->compute_gradient(stream));
  const std::vector<float> gradient = trainee->gradient();
  const ParameterLayout& layout = trainee->replica.layout();
  const std::vector<float> start(trainee->replica.master().begin(), trainee->replica.master().end());

  std::vector<float> direction(layout.total(), 0.0F);
  double slope = 0;
  for (std::size_t p = 0; p < layout.size(); ++p) {
    for (std::size_t i = layout.offset(p); i < layout.offset(p) + layout.count(p); ++i) {
      direction[i] = philox({77, 0}, i)[0] % 2 == 0 ? 1.0F : -1.0F;
      slope += static_cast<double>(direction[i]) * static_cast<double>(gradient[i]);
    }
  }
  const auto loss_at = [&](float distance) {
    for (std::size_t i = 0; i < start.size(); ++i) {
      trainee->replica.master()[i] = start[i] + distance * direction[i];
    }
    trainee->replica.refresh();
    return trainee->compute_gradient(stream) / static_cast<double>(Trainee::kBatch * Trainee::kSequence);
  };
  constexpr float kDistance = 2e-4F;
  const double measured = (loss_at(kDistance) - loss_at(-kDistance)) / (2 * static_cast<double>(kDistance));
  EXPECT_NEAR(measured, slope, 0.01 * std::abs(slope) + 0.02);
}

// The layout's promise: buckets can be reduced from the front while the backward pass is still running.
TEST_P(TransformerTest, FinishesGradientsInTheOrderOfTheLayout) {
  class OrderSink final : public GradientSink {
   public:
    explicit OrderSink(const ParameterLayout& layout) : layout_(layout), memory_(layout.total()) {}
    Tensor gradient_of(int parameter) override {
      const auto p = static_cast<std::size_t>(parameter);
      const auto& dims = layout_.specs()[p].shape;
      return {memory_.data() + layout_.offset(p), dims.size() == 1 ? Shape{dims[0]} : Shape{dims[0], dims[1]},
              DType::kF32};
    }
    void gradient_ready(int parameter) override { order.push_back(static_cast<std::size_t>(parameter)); }
    std::vector<std::size_t> order;

   private:
    const ParameterLayout& layout_;
    std::vector<float> memory_;
  };

  const auto backend = make_cpu_backend(1);
  Replica replica(architecture(), Precision::kFp32, *backend);
  randomize(replica);
  Arena arena;
  OrderSink sink(replica.layout());
  Tape tape(*backend, arena, &sink);
  const std::vector<std::int32_t> tokens = random_tokens(10, 61);
  tape.backward(replica.model().loss(tape, replica.weights(), {tokens, tokens, 2, 5}, {}, 1.0F).value);
  ASSERT_EQ(sink.order.size(), replica.layout().size());
  // Gradients of one record become ready together, in any order among themselves: a weight and its bias, the tables.
  for (std::size_t i = 0; i < sink.order.size(); ++i) {
    EXPECT_LE(std::max(sink.order[i], i) - std::min(sink.order[i], i), 1U)
        << replica.layout().specs()[sink.order[i]].name << " is at place " << i;
  }
}

TEST_P(TransformerTest, GivesTheSameBitsWhateverIsRecomputed) {
  for (const Precision precision : {Precision::kFp32, Precision::kBf16, Precision::kFp16}) {
    for (const float probability : {0.0F, 0.2F}) {
      std::vector<float> gradient;
      double loss = 0;
      for (const Recompute recompute : {Recompute::kNone, Recompute::kAttention, Recompute::kBlock}) {
        SCOPED_TRACE(name_of(recompute));
        Trainee trainee(architecture(), precision, make_cpu_backend(2));
        const double its_loss = trainee.compute_gradient({probability, 7, 3}, recompute);
        if (recompute == Recompute::kNone) {
          gradient = trainee.gradient();
          loss = its_loss;
        }
        EXPECT_EQ(its_loss, loss);
        EXPECT_EQ(trainee.gradient(), gradient);
      }
    }
  }
}

TEST_P(TransformerTest, KeepsLessWhenItRecomputesMore) {
  constexpr std::int64_t kRows = 4;
  constexpr std::int64_t kLength = 512;
  Architecture deep = architecture();
  deep.layers = 24;
  deep.width = 128;
  deep.head_dim = 32;
  deep.hidden = 512;
  deep.context = kLength;
  const std::vector<std::int32_t> tokens = random_tokens(kRows * kLength, 61);
  std::vector<std::size_t> reserved;
  for (const Recompute recompute : {Recompute::kNone, Recompute::kAttention, Recompute::kBlock}) {
    Trainee trainee(deep, Precision::kFp32, make_cpu_backend(2));
    trainee.compute_gradient_of({tokens, tokens, kRows, kLength}, {}, recompute);
    reserved.push_back(trainee.arena.reserved_bytes());
  }
  EXPECT_LT(reserved[1], reserved[0] * 9 / 10);
  EXPECT_LT(reserved[2], reserved[0] / 2);
}

TEST_P(TransformerTest, CountsOnlyTheTargetsThatAreTrainedOn) {
  const auto backend = make_cpu_backend(1);
  Replica replica(architecture(), Precision::kFp32, *backend);
  randomize(replica);
  Arena arena;
  Tape tape(*backend, arena, nullptr);
  const std::vector<std::int32_t> inputs = {1, 2, 3, 4};
  const auto loss_of = [&](std::vector<std::int32_t> targets) {
    return replica.model().loss(tape, replica.weights(), {inputs, targets, 1, 4}, {}, 1.0F);
  };
  const Loss all = loss_of({2, 3, 4, 5});
  EXPECT_EQ(all.count, 4);
  double sum = 0;
  for (std::size_t i = 0; i < 4; ++i) {
    std::vector<std::int32_t> targets(4, -1);
    targets[i] = static_cast<std::int32_t>(i) + 2;
    const Loss one = loss_of(targets);
    EXPECT_EQ(one.count, 1);
    sum += one.sum();
  }
  EXPECT_NEAR(sum, all.sum(), 1e-5);
  const Loss none = loss_of({-1, -1, -1, -1});
  EXPECT_EQ(none.count, 0);
  EXPECT_EQ(none.sum(), 0.0);
}

// Three sequences in one row of tokens have the losses and the gradients that they have alone.
TEST_P(TransformerTest, ComputesSequencesOfManyLengthsAsIfEachWereAlone) {
  const std::vector<std::int64_t> lengths = {7, 24, 11};
  const auto together = make_trainee(architecture());
  const auto alone = make_trainee(architecture());
  const std::vector<std::int32_t> inputs = random_tokens(42, 61, 1);
  const std::vector<std::int32_t> targets = random_tokens(42, 61, 2);
  for (const Recompute recompute : {Recompute::kNone, Recompute::kBlock}) {
    const double loss = together->compute_gradient_of({inputs, targets, 1, 42, lengths}, {}, recompute);
    const std::vector<float> gradient = together->gradient();
    double sum = 0;
    std::vector<double> sums(gradient.size(), 0.0);
    for (std::size_t begin = 0; const std::int64_t length : lengths) {
      const auto count = static_cast<std::size_t>(length);
      sum += alone->compute_gradient_of(
          {std::span(inputs).subspan(begin, count), std::span(targets).subspan(begin, count), 1, length}, {},
          recompute);
      const std::vector<float> part = alone->gradient();
      for (std::size_t i = 0; i < part.size(); ++i) {
        sums[i] += static_cast<double>(part[i]) * static_cast<double>(length) / 42;  // its mean is over its own tokens
      }
      begin += count;
    }
    EXPECT_NEAR(loss, sum, 1e-4);
    for (std::size_t i = 0; i < gradient.size(); ++i) {
      ASSERT_NEAR(static_cast<double>(gradient[i]), sums[i], 1e-5) << i;
    }
  }
}

// Noise and dropout differ from sequence to sequence, and are the same each time.
TEST_P(TransformerTest, DrawsForEachSequenceOfARow) {
  const auto trainee = make_trainee(architecture());
  std::vector<std::int32_t> inputs = random_tokens(10, 61, 1);
  inputs.insert(inputs.end(), inputs.begin(), inputs.end());
  const std::vector<std::int64_t> lengths = {10, 10};
  for (const Transformer::DropoutStream& stream :
       {Transformer::DropoutStream{.seed = 3}, Transformer::DropoutStream{.probability = 0.3F, .seed = 3},
        Transformer::DropoutStream{.seed = 3, .noise = 50}}) {
    std::vector<double> losses;
    for (const std::size_t target : {std::size_t{9}, std::size_t{19}, std::size_t{19}}) {
      std::vector<std::int32_t> targets(20, -1);
      targets[target] = 5;
      losses.push_back(trainee->compute_gradient_of({inputs, targets, 1, 20, lengths}, stream, Recompute::kNone));
    }
    const bool draws = stream.probability > 0 || stream.noise > 0;
    EXPECT_EQ(losses[0] != losses[1], draws);
    EXPECT_EQ(losses[1], losses[2]);
  }
}

// What preferences rest on: before any training the model with adapters is the one without, to the bit.
TEST_P(TransformerTest, BeginsWithAdaptersThatSayNothing) {
  for (const bool dora : {false, true}) {
    for (const Precision precision : {Precision::kFp32, Precision::kBf16, Precision::kFp16}) {
      TuneConfig tune;
      tune.method = TuneMethod::kLora;
      tune.rank = 3;
      tune.dora = dora;
      const auto backend = make_cpu_backend(1);
      Replica replica(architecture(), precision, *backend, tune);
      Arena arena;
      Tape tape(*backend, arena, nullptr);
      for (std::size_t i = 0; i < replica.frozen().size(); ++i) {
        std::vector<float> values(replica.frozen().count(i));
        for (std::size_t k = 0; k < values.size(); ++k) {
          values[k] = uniform_float(philox({static_cast<std::uint32_t>(i), 5}, k)[0]) - 0.4F;
        }
        replica.fill_frozen(i, values);
      }
      replica.fill([&](std::span<float> weights) {
        initialize(architecture(), replica.model().parameters(), 1, backend->pool(), weights);
        replica.model().initialize_magnitudes(tape, replica.weights(), weights);
      });
      const std::vector<std::int32_t> tokens = random_tokens(20, 61, 1);
      const Transformer::Rows rows{tokens, tokens, 1, 20};
      EXPECT_EQ(replica.model().loss(tape, replica.weights(), rows, {}, 1.0F).sum(),
                replica.model().base_loss(tape, replica.weights(), rows).sum());
    }
  }
}

TEST_P(TransformerTest, RefusesWhatDoesNotFitTheModel) {
  const auto backend = make_cpu_backend(1);
  Replica replica(architecture(), Precision::kFp32, *backend);
  randomize(replica);
  Arena arena;
  Tape tape(*backend, arena, nullptr);
  const auto refusal = [&](std::vector<std::int32_t> inputs, std::vector<std::int32_t> targets) {
    const auto length = static_cast<std::int64_t>(inputs.size());
    return message_of_error(ErrorCode::kUsage, [&] {
      static_cast<void>(replica.model().loss(tape, replica.weights(), {inputs, targets, 1, length}, {}, 1.0F));
    });
  };
  EXPECT_EQ(refusal(std::vector<std::int32_t>(25, 0), std::vector<std::int32_t>(25, 0)),
            "model: a sequence of 25 is longer than the context of 24");
  EXPECT_THAT(refusal({0, 61}, {0, 0}), HasSubstr("token 61 at row 1 is outside the vocabulary of 61"));
  EXPECT_THAT(refusal({0, -1}, {0, 0}), HasSubstr("token -1 at row 1 is outside the vocabulary of 61"));
  EXPECT_THAT(refusal({0, 1}, {0, 61}), HasSubstr("target 61 is outside the vocabulary of 61"));
}

INSTANTIATE_TEST_SUITE_P(Families, TransformerTest, testing::Values(ModelFamily::kGpt2, ModelFamily::kLlama),
                         [](const auto& family) { return std::string(name_of(family.param)); });

TEST(TransformerWithoutBiases, ComputesWhatZeroBiasesDo) {
  Architecture with = small_gpt2();
  Architecture without = small_gpt2();
  without.bias = false;
  const auto zeros = make_trainee(with);
  const auto none = make_trainee(without);
  const ParameterLayout& layout = zeros->replica.layout();
  for (std::size_t p = 0; p < layout.size(); ++p) {
    const auto values = zeros->replica.master().subspan(layout.offset(p), layout.count(p));
    const auto place = none->replica.layout().find(layout.specs()[p].name);
    if (place) {
      std::ranges::copy(
          values, none->replica.master().begin() + static_cast<std::ptrdiff_t>(none->replica.layout().offset(*place)));
    } else {
      std::ranges::fill(values, 0.0F);
    }
  }
  EXPECT_EQ(none->replica.layout().size(), 2U * 6U + 3U);
  EXPECT_NEAR(none->compute_gradient(), zeros->compute_gradient(), 1e-4);
  for (std::size_t p = 0; p < layout.size(); ++p) {
    if (const auto place = none->replica.layout().find(layout.specs()[p].name)) {
      for (std::size_t i = 0; i < layout.count(p); ++i) {
        EXPECT_NEAR(none->reducer.gradient()[none->replica.layout().offset(*place) + i],
                    zeros->reducer.gradient()[layout.offset(p) + i], 1e-5);
      }
    }
  }
}

}  // namespace
}  // namespace lockstep
