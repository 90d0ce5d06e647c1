// Whole models on a GPU beside the CPU: the same weights and batches give the same losses, gradients, logits and
// training curves within what rounding moves. Skipped where there is no GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "base/cuda/devices.h"
#include "tests/trainer/model/trainee.h"
#include "trainer/optimizer.h"

namespace lockstep {
namespace {

std::string why_no_gpu() {
  const cuda::DeviceList list = cuda::list_devices();
  return list.devices.empty() ? list.problem : list.devices.front().problem;
}

// The largest difference, relative to the largest expected magnitude.
double difference(const std::vector<float>& actual, const std::vector<float>& expected) {
  EXPECT_EQ(actual.size(), expected.size());
  double largest = 0;
  double error = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(expected[i])));
    const double distance = std::abs(static_cast<double>(actual[i]) - static_cast<double>(expected[i]));
    error = std::isnan(distance) ? INFINITY : std::max(error, distance);
  }
  return error / largest;
}

struct Case {
  std::string name;
  Architecture architecture;
  Precision precision;
  // What GPU and CPU may differ by.
  double loss;
  double gradient;
  double logits;
};

// Heads of 64 in bf16 are cuDNN's.
Architecture with_wide_heads(Architecture a) {
  a.width = 128;
  a.heads = 2;
  a.head_dim = 64;
  a.kv_heads = a.family == ModelFamily::kGpt2 ? 2 : 1;
  a.hidden = 256;
  return a;
}

std::vector<Case> cases() {
  std::vector<Case> cases;
  for (const auto& [name, architecture] : {std::pair<std::string, Architecture>{"gpt2", small_gpt2()},
                                           {"llama", small_llama()},
                                           {"gpt2_wide", with_wide_heads(small_gpt2())},
                                           {"llama_wide", with_wide_heads(small_llama())}}) {
    cases.push_back({name + "_fp32", architecture, Precision::kFp32, 1e-5, 1e-4, 1e-4});
    cases.push_back({name + "_bf16", architecture, Precision::kBf16, 5e-3, 0.06, 0.03});
    if (name == "gpt2" || name == "llama_wide") {
      cases.push_back({name + "_fp16", architecture, Precision::kFp16, 7e-4, 8e-3, 4e-3});
    }
  }
  return cases;
}

std::string name_of_case(const testing::TestParamInfo<Case>& info) { return info.param.name; }

class GpuModelTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (const std::string problem = why_no_gpu(); !problem.empty()) {
      GTEST_SKIP() << problem;
    }
    cpu_ = std::make_unique<Trainee>(GetParam().architecture, GetParam().precision, make_cpu_backend(2));
    gpu_ = std::make_unique<Trainee>(GetParam().architecture, GetParam().precision, make_cuda_backend(0, 2));
  }

  std::unique_ptr<Trainee> cpu_;
  std::unique_ptr<Trainee> gpu_;
};

TEST_P(GpuModelTest, HasTheCpusLossAndGradients) {
  for (const float probability : {0.0F, 0.2F}) {
    for (const Recompute recompute : {Recompute::kNone, Recompute::kBlock}) {
      const Transformer::DropoutStream dropout{.probability = probability, .seed = 3, .micro_batch = 4};
      const double expected = cpu_->compute_gradient(dropout, recompute);
      const double actual = gpu_->compute_gradient(dropout, recompute);
      EXPECT_NEAR(actual, expected, GetParam().loss * expected) << "dropout " << probability;
      EXPECT_LE(difference(gpu_->gradient(), cpu_->gradient()), GetParam().gradient) << "dropout " << probability;
    }
  }
}

TEST_P(GpuModelTest, GivesTheSameBitsTwiceAndWhenRecomputed) {
  const Transformer::DropoutStream dropout{.probability = 0.2F, .seed = 3, .micro_batch = 4};
  const double loss = gpu_->compute_gradient(dropout);
  const std::vector<float> gradient = gpu_->gradient();
  for (const Recompute recompute : {Recompute::kNone, Recompute::kAttention, Recompute::kBlock}) {
    EXPECT_EQ(gpu_->compute_gradient(dropout, recompute), loss);
    EXPECT_EQ(gpu_->gradient(), gradient);
  }
}

TEST_P(GpuModelTest, TakesNoDeviceMemoryInASteadyStep) {
  static_cast<void>(gpu_->compute_gradient());
  const std::size_t allocated = gpu_->backend->allocated_bytes();
  for (int step = 0; step < 3; ++step) {
    static_cast<void>(gpu_->compute_gradient());
    EXPECT_EQ(gpu_->backend->allocated_bytes(), allocated);
  }
}

TEST_P(GpuModelTest, HasTheCpusLogitsHoweverTheSequenceIsCut) {
  const auto logits_of = [&](Trainee& trainee) {
    const auto tokens = std::span<const std::int32_t>(trainee.inputs).first(Trainee::kSequence);
    Tape tape(*trainee.backend, trainee.arena, nullptr);
    KvCache cache(trainee.replica.model().architecture(), trainee.replica.working_dtype(), *trainee.backend);
    std::vector<float> all;
    for (const std::size_t piece : {5U, 1U, 11U}) {
      const auto part = tokens.subspan(static_cast<std::size_t>(cache.length()), piece);
      const Tensor logits = trainee.replica.model().next_logits(tape, trainee.replica.weights(), part, cache);
      std::vector<float> values(static_cast<std::size_t>(logits.count()));
      trainee.backend->copy(logits.buffer(), view_of(std::span(values)));
      all.insert(all.end(), values.begin(), values.end());
    }
    return all;
  };
  EXPECT_LE(difference(logits_of(*gpu_), logits_of(*cpu_)), GetParam().logits);
}

// Each step takes the next of four batches, which the model learns by heart.
TEST_P(GpuModelTest, HasTheCpusTrainingCurve) {
  constexpr int kSteps = 200;
  constexpr std::uint32_t kBatches = 4;
  const auto curve_of = [&](Trainee& trainee) {
    const ParameterLayout& layout = trainee.replica.layout();
    OptimizerConfig config;
    config.clip_norm = 1.0;
    Optimizer optimizer(layout, *trainee.backend, config, {0, layout.total()});
    std::vector<double> block_sums(squares_blocks(layout.total()));
    std::vector<float> losses;
    for (int step = 0; step < kSteps; ++step) {
      const auto batch = static_cast<std::uint32_t>(step) % kBatches;
      const auto count = static_cast<std::size_t>(Trainee::kBatch * Trainee::kSequence);
      trainee.inputs = random_tokens(count, 61, 100 + batch);
      trainee.targets = random_tokens(count, 61, 200 + batch);
      losses.push_back(static_cast<float>(trainee.compute_gradient() / static_cast<double>(count)));
      trainee.backend->sums_of_squares(trainee.reducer.gradient(), block_sums);
      const ElementRange all{0, layout.total()};
      optimizer.update({.step = step + 1,
                        .learning_rate = 5e-4,
                        .gradient_norm = std::sqrt(std::accumulate(block_sums.begin(), block_sums.end(), 0.0)),
                        .part = all,
                        .gradient = trainee.reducer.gradient(),
                        .master = trainee.replica.master()});
      trainee.replica.refresh();
    }
    return losses;
  };
  const std::vector<float> expected = curve_of(*cpu_);
  const std::vector<float> actual = curve_of(*gpu_);
  EXPECT_LT(expected.back(), 0.5F * expected.front());
  // Two instruction sets of a CPU, whose roundings differ as well, differ by up to 1.2 % of the first loss here.
  EXPECT_LE(difference(actual, expected), 0.03);
}

INSTANTIATE_TEST_SUITE_P(Models, GpuModelTest, testing::ValuesIn(cases()), name_of_case);

}  // namespace
}  // namespace lockstep
