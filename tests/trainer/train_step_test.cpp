// A training step on real ranks: with a sharded optimizer it is the one without, in the same bits.
#include "trainer/train_step.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "comm/communicator.h"

namespace lockstep {
namespace {

// 2.7 million parameters: buckets, shards and their slices are several each, and too large to be summed by who waits.
constexpr const char* kConfig = R"(
run:   {name: step}
model: {family: gpt2, layers: 3, heads: 4, width: 256, context: 32, vocab: 1201}
data:  {train: none, sequence: 32}
train: {steps: 10, micro_batches: 8, micro_batch_size: 1, threads: 1, determinism: fixed}
comm:  {bucket_mib: 1}
)";

class TrainStepTest : public testing::TestWithParam<const char*> {
 protected:
  TrainStepTest() {
    for (std::uint64_t i = 0; i < 32; ++i) {
      batch_.inputs.push_back(static_cast<std::int32_t>(mix64(i) % 1201));
      batch_.targets.push_back(static_cast<std::int32_t>(mix64(i + 1000) % 1201));
    }
    batch_.row_tokens = 32;
    batch_.step_inputs = batch_.step_targets = 8 * 32;
  }
  void TearDown() override {
    if (!HasFailure()) {
      communicator_->close();
    }
  }

  [[nodiscard]] Config config(int zero, const std::vector<std::string>& more = {}) const {
    std::vector<std::string> settings = {std::string("train.precision=") + GetParam(),
                                         "comm.zero=" + std::to_string(zero)};
    settings.insert(settings.end(), more.begin(), more.end());
    return resolve(parse_config(kConfig, "step.yaml", settings), {.world_size = communicator_->world_size(),
                                                                  .ranks_on_node = communicator_->node_size(),
                                                                  .cores_on_node = 1,
                                                                  .vocab = 1201});
  }
  double run(TrainStep& step, std::int64_t completed) {
    static_cast<void>(step.compute_gradients(completed, [&]() -> const TokenBatch& { return batch_; }));
    step.finish_gradients();
    const double norm = step.gradient_norm(completed);
    if (std::isfinite(norm)) {
      step.update(completed, 1e-3, norm);
    }
    return norm;
  }

  std::unique_ptr<Communicator> communicator_ = make_communicator({.timeout_ms = 60'000});
  std::unique_ptr<Backend> backend_ = make_cpu_backend(1);
  TokenBatch batch_;
};

std::vector<float> copy_of(std::span<const float> values) { return {values.begin(), values.end()}; }

std::vector<std::byte> bytes_of(const BufferView& view) {
  const auto* const begin = static_cast<const std::byte*>(view.data);
  return {begin, begin + view.size_bytes()};
}

TEST_P(TrainStepTest, GivesTheSameBitsWithAndWithoutShards) {
  const Config whole_config = config(0);
  const Config sharded_config = config(1);
  TrainStep whole(whole_config, *communicator_, *backend_);
  TrainStep sharded(sharded_config, *communicator_, *backend_);
  whole.replica().initialize(5);
  sharded.replica().initialize(5);
  ASSERT_EQ(sharded.is_sharded(), communicator_->world_size() > 1);
  for (std::int64_t completed = 0; completed < 4; ++completed) {
    const double norm = run(whole, completed);
    EXPECT_EQ(run(sharded, completed), norm);
    EXPECT_GT(norm, 0.0);
    EXPECT_GE(sharded.comm_ms(), sharded.exposed_ms());
  }
  const ElementRange owned = sharded.optimizer().owned();
  const auto part = [&](std::span<const float> all) { return copy_of(all.subspan(owned.begin, owned.size())); };
  EXPECT_EQ(bytes_of(sharded.replica().working()), bytes_of(whole.replica().working()));
  EXPECT_EQ(copy_of(sharded.replica().master_of(owned)), copy_of(whole.replica().master_of(owned)));
  EXPECT_EQ(copy_of(sharded.optimizer().exp_avg()), part(whole.optimizer().exp_avg()));
  EXPECT_EQ(copy_of(sharded.optimizer().exp_avg_sq()), part(whole.optimizer().exp_avg_sq()));
}

TEST_P(TrainStepTest, ChangesNothingForAGradientThatIsNotFinite) {
  for (const int zero : {0, 1}) {
    const Config its_config = config(zero);
    TrainStep step(its_config, *communicator_, *backend_);
    step.replica().fill([](std::span<float> weights) {
      std::fill(weights.begin(), weights.end(), 0.5F);
      weights[0] = std::numeric_limits<float>::infinity();
    });
    const std::vector<std::byte> weights = bytes_of(step.replica().working());
    EXPECT_FALSE(std::isfinite(run(step, 0)));
    EXPECT_EQ(bytes_of(step.replica().working()), weights);
    const std::vector<float> moments = copy_of(step.optimizer().exp_avg());
    EXPECT_EQ(std::count(moments.begin(), moments.end(), 0.0F), static_cast<std::ptrdiff_t>(moments.size()));
  }
}

// In fp16: a step whose gradients overflow is the step at the scale at which they do not, also where random numbers
// are drawn.
class ScaledTrainStepTest : public TrainStepTest {
 protected:
  void expect_step_at_lower_scale(int zero) {
    const auto scaled = [&](std::int64_t scale) {
      return config(zero,
                    {"train.loss_scale=" + std::to_string(scale), "model.dropout=0.1", "train.embedding_noise=5"});
    };
    const Config high_config = scaled(std::int64_t{1} << 30);
    TrainStep high(high_config, *communicator_, *backend_);
    high.replica().initialize(5);
    static_cast<void>(high.compute_gradients(0, [&]() -> const TokenBatch& { return batch_; }));
    high.finish_gradients();
    std::vector<float> scales;
    const auto computes = [&](std::int64_t micro_batch) {
      if (micro_batch == 0) {
        scales.push_back(high.loss_scaler().scale());
      }
    };
    const double norm = high.gradient_norm(0, {.computes = computes});
    ASSERT_GT(scales.size(), 2U);
    EXPECT_EQ(scales.front(), 0x1p29F);
    EXPECT_EQ(high.gradient_scale(), 1 / static_cast<double>(scales.back()));
    high.update(0, 1e-3, norm);

    const Config low_config = scaled(static_cast<std::int64_t>(scales.back()));
    TrainStep low(low_config, *communicator_, *backend_);
    low.replica().initialize(5);
    EXPECT_EQ(run(low, 0), norm);
    EXPECT_EQ(low.loss_scaler().state(), high.loss_scaler().state());
    EXPECT_EQ(bytes_of(low.replica().working()), bytes_of(high.replica().working()));
    EXPECT_EQ(copy_of(low.optimizer().exp_avg_sq()), copy_of(high.optimizer().exp_avg_sq()));
  }
};

TEST_P(ScaledTrainStepTest, ComputesGradientsThatOverflowAgainAtALowerScale) {
  for (const int zero : {0, 1}) {
    expect_step_at_lower_scale(zero);
  }
}

TEST_P(ScaledTrainStepTest, ComputesAgainOnAllRanksWhereOnesGradientsOverflow) {
  if (communicator_->rank() != communicator_->world_size() - 1) {
    std::ranges::fill(batch_.targets, -1);  // without a loss there is nothing to overflow
  }
  for (const int zero : {0, 1}) {
    expect_step_at_lower_scale(zero);
  }
}

TEST_P(ScaledTrainStepTest, HasNearlyTheSameNormAtAnotherScale) {
  const Config one_config = config(0, {"train.loss_scale=1024"});
  const Config other_config = config(0, {"train.loss_scale=4096"});
  TrainStep one(one_config, *communicator_, *backend_);
  TrainStep other(other_config, *communicator_, *backend_);
  one.replica().initialize(5);
  other.replica().initialize(5);
  const double norm = run(one, 0);
  EXPECT_NEAR(run(other, 0), norm, 1e-3 * norm);
}

INSTANTIATE_TEST_SUITE_P(Precisions, ScaledTrainStepTest, testing::Values("fp16"),
                         [](const auto& precision) { return std::string(precision.param); });
INSTANTIATE_TEST_SUITE_P(Precisions, TrainStepTest, testing::Values("fp32", "bf16", "fp16"),
                         [](const auto& precision) { return std::string(precision.param); });

}  // namespace
}  // namespace lockstep
