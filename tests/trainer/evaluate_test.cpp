// The loss of a dataset, on any number of ranks, against a plain loop over its samples.
#include "trainer/evaluate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <vector>

#include "comm/self_communicator.h"
#include "tests/data/small_dataset.h"
#include "tests/support/temporary_folder.h"
#include "tests/trainer/small_models.h"

namespace lockstep {
namespace {

constexpr std::int64_t kSequence = 6;
constexpr std::int64_t kSamples = 17;

class EvaluateTest : public testing::Test {
 protected:
  EvaluateTest() {
    randomize(replica_);
    // A token for the last target, and some that fill no sample.
    tokens_ = random_tokens(kSamples * kSequence + 1 + 3, 61);
    const std::vector<std::uint32_t> ids(tokens_.begin(), tokens_.end());
    static_cast<void>(write_small_dataset(folder_ / "d", ids, {50, ids.size() - 50}, 61));
  }
  void SetUp() override { comm_ = make_communicator({.backend = "mpi", .timeout_ms = 30'000}); }
  void TearDown() override {
    if (!HasFailure()) {
      comm_->close();
    }
  }

  [[nodiscard]] EvaluationOptions options(std::int64_t batch_size, std::uint64_t max_batches = 0) const {
    return {folder_ / "d", kSequence, false, batch_size, max_batches};
  }
  [[nodiscard]] EvaluationResult on_all_ranks(const EvaluationOptions& options) {
    return *evaluate(replica_, arena_, *comm_, options);
  }
  [[nodiscard]] EvaluationResult alone(const EvaluationOptions& options) {
    SelfCommunicator self;
    return *evaluate(replica_, arena_, self, options);
  }
  // The mean over the tokens of the first `samples` samples, one at a time.
  [[nodiscard]] double mean_loss(std::int64_t samples) {
    Tape tape(*backend_, arena_, nullptr);
    const std::span<const std::int32_t> tokens(tokens_);
    double sum = 0;
    for (std::int64_t sample = 0; sample < samples; ++sample) {
      const auto first = static_cast<std::size_t>(sample * kSequence);
      const Loss loss = replica_.model().loss(
          tape, replica_.weights(),
          {tokens.subspan(first, kSequence), tokens.subspan(first + 1, kSequence), 1, kSequence}, {}, 1.0F);
      sum += loss.sum();
    }
    return sum / static_cast<double>(samples * kSequence);
  }

  // How many tokens of all samples are the likeliest by their logits, one sample at a time.
  [[nodiscard]] std::int64_t hits() {
    Tape tape(*backend_, arena_, nullptr);
    const std::span<const std::int32_t> tokens(tokens_);
    std::int64_t hits = 0;
    for (std::int64_t sample = 0; sample < kSamples; ++sample) {
      const auto inputs = tokens.subspan(static_cast<std::size_t>(sample * kSequence), kSequence);
      const Tensor logits = replica_.model().logits(
          tape, replica_.weights(), {.inputs = inputs, .targets = {}, .batch = 1, .sequence = kSequence});
      const auto vocabulary = static_cast<std::size_t>(replica_.model().architecture().vocab);
      for (std::size_t t = 0; t < kSequence; ++t) {
        const auto row = logits.as<float>().subspan(t * vocabulary, vocabulary);
        hits += std::ranges::max_element(row) - row.begin() == *(inputs.data() + t + 1) ? 1 : 0;
      }
    }
    return hits;
  }

  TemporaryFolder folder_;
  std::unique_ptr<Backend> backend_ = make_cpu_backend(1);
  Replica replica_{small_llama(), Precision::kFp32, *backend_};
  Arena arena_;
  std::vector<std::int32_t> tokens_;
  std::unique_ptr<Communicator> comm_;
};

// Batches of 4 end with one row and three of padding; batches of 17 and 100 leave ranks without any.
TEST_F(EvaluateTest, IsTheMeanOverEverySampleWhateverTheBatches) {
  const double expected = mean_loss(kSamples);
  for (const std::int64_t batch_size : {1, 4, 5, 17, 100}) {
    const EvaluationResult result = on_all_ranks(options(batch_size));
    EXPECT_EQ(result.tokens, kSamples * kSequence);
    EXPECT_NEAR(result.loss, expected, 1e-6 * expected) << "batches of " << batch_size;
    EXPECT_DOUBLE_EQ(result.perplexity(), std::exp(result.loss));
  }
}

TEST_F(EvaluateTest, CountsTheTokensThatAreTheLikeliest) {
  const std::int64_t expected = hits();
  ASSERT_GT(expected, 0);
  for (const std::int64_t batch_size : {1, 4, 100}) {
    const EvaluationResult result = on_all_ranks(options(batch_size));
    EXPECT_EQ(result.hits, expected) << "batches of " << batch_size;
    EXPECT_EQ(result.accuracy(), static_cast<double>(expected) / (kSamples * kSequence));
  }
}

TEST_F(EvaluateTest, StopsAfterSoManyBatches) {
  for (const std::uint64_t batches : {1, 2, 4}) {
    const auto samples = static_cast<std::int64_t>(batches) * 4;
    const EvaluationResult result = on_all_ranks(options(4, batches));
    const double expected = mean_loss(samples);
    EXPECT_EQ(result.tokens, samples * kSequence);
    EXPECT_NEAR(result.loss, expected, 1e-6 * expected) << batches << " batches";
  }
  EXPECT_EQ(on_all_ranks(options(4, 5)).tokens, kSamples * kSequence);
  EXPECT_EQ(on_all_ranks(options(4, 1000)).tokens, kSamples * kSequence);
}

TEST_F(EvaluateTest, HasTheSameBitsOnAnyNumberOfRanks) {
  for (const std::int64_t batch_size : {1, 2, 4, 17}) {
    for (const std::uint64_t batches : {0, 1, 3}) {
      const EvaluationResult together = on_all_ranks(options(batch_size, batches));
      const EvaluationResult one = alone(options(batch_size, batches));
      EXPECT_EQ(together.loss, one.loss) << batches << " batches of " << batch_size;
      EXPECT_EQ(together.tokens, one.tokens);
    }
  }
}

TEST_F(EvaluateTest, TellsEachRankOfItsBatches) {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> calls;
  EvaluationHooks hooks;
  hooks.progress = [&](std::uint64_t done, std::uint64_t total) { calls.emplace_back(done, total); };
  static_cast<void>(evaluate(replica_, arena_, *comm_, options(4), hooks));
  std::vector<std::pair<std::uint64_t, std::uint64_t>> expected;
  const int world = comm_->world_size();
  const int largest = (5 + world - 1) / world;
  const int mine = std::clamp(5 - comm_->rank() * largest, 0, largest);
  for (int i = 1; i <= mine; ++i) {
    expected.emplace_back(i, mine);
  }
  EXPECT_EQ(calls, expected);
}

// Also where the ranks have different numbers of batches, and whichever of them asks.
TEST_F(EvaluateTest, EndsOnAllRanksWhenOneIsAskedToStop) {
  for (int asked = 0; asked < comm_->world_size(); ++asked) {
    std::uint64_t polls = 0;
    EvaluationHooks hooks;
    hooks.stop_requested = [&] { return ++polls == 2 && comm_->rank() == asked; };
    const std::optional<EvaluationResult> stopped = evaluate(replica_, arena_, *comm_, options(1), hooks);
    EXPECT_FALSE(stopped.has_value());
    EXPECT_EQ(polls, 2U);
  }
  EvaluationHooks never;
  never.stop_requested = [] { return false; };
  EXPECT_EQ(evaluate(replica_, arena_, *comm_, options(1), never)->loss, on_all_ranks(options(1)).loss);
}

}  // namespace
}  // namespace lockstep
