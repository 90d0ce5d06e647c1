// The models of all families, and adapters, against PyTorch: tests/golden/model/make_models.py made the files.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "comm/self_communicator.h"
#include "tests/ops/sum_of_squares.h"
#include "trainer/batch_rows.h"
#include "trainer/checkpoint/reader.h"
#include "trainer/formats/safetensors.h"
#include "trainer/grad_reducer.h"
#include "trainer/optimizer.h"
#include "trainer/preference.h"
#include "trainer/replica.h"
#include "trainer/tuned_model.h"

namespace lockstep {
namespace {

// As in make_models.py.
constexpr std::size_t kStride = 5;
constexpr double kLearningRates[] = {1e-3, 2e-3, 5e-4};
OptimizerConfig adamw() {
  OptimizerConfig config;
  config.betas = {0.9, 0.95};
  config.eps = 1e-5;
  config.weight_decay = 0.1;
  config.clip_norm = 0.5;
  return config;
}

Architecture read_architecture(const std::filesystem::path& folder) {
  return from_hf_config(read_file(folder / "config.json"), (folder / "config.json").string());
}

std::filesystem::path golden_folder(const std::string& name) {
  return std::filesystem::path(LOCKSTEP_GOLDEN_MODELS) / name;
}

// The largest difference, in units of the largest expected value; for gradients and weights of one tensor.
double relative_difference(std::span<const float> actual, std::span<const float> expected) {
  EXPECT_EQ(actual.size(), expected.size());
  double largest = 0;
  double difference = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(expected[i])));
    difference = std::max(difference, std::abs(static_cast<double>(actual[i]) - static_cast<double>(expected[i])));
  }
  return difference / largest;
}

// A golden model loaded through the same functions as a user's folder.
class Golden {
 public:
  Golden(const std::string& name, Precision precision)
      : tuned_(find_tuned_model(golden_folder(name))),
        folder_(golden_folder(tuned_ ? tuned_->base.string() : name)),
        expected_(golden_folder(name) / "expected.safetensors"),
        backend(make_cpu_backend(2)),
        replica(read_architecture(folder_), precision, *backend, tuned_ ? tuned_->tune : TuneConfig{}),
        reducer(replica.layout(), self, *backend, {}),
        optimizer(replica.layout(), *backend, adamw(), {0, replica.layout().total()}) {
    if (tuned_) {
      load_tuned(*tuned_, folder_, replica);
    } else {
      replica.fill([&](std::span<float> weights) { load_weights(folder_, replica.layout(), weights); });
    }
    const SafetensorsTensor& tensor = expected_.get("inputs");
    rows = tensor.shape[0];
    sequence = tensor.shape[1];
    inputs = integers("inputs");
    targets = integers("targets");
  }

  [[nodiscard]] std::vector<float> expected(const std::string& name) const {
    const SafetensorsTensor& tensor = expected_.get(name);
    std::vector<float> values(tensor.count());
    expected_.read_f32(tensor, 0, values);
    return values;
  }

  // Forward and backward pass over the batch; leaves the gradient in the reducer.
  Loss compute_gradient() {
    Tape tape(*backend, arena, &reducer);
    const auto count = std::ranges::count_if(targets, [](std::int32_t target) { return target >= 0; });
    const Loss loss = replica.model().loss(tape, replica.weights(), {inputs, targets, rows, sequence}, {},
                                           1.0F / static_cast<float>(count));
    tape.backward(loss.value);
    reducer.end_micro_batch();
    reducer.finish();
    return loss;
  }

  // Compares every parameter's part of `flat` with what the file holds as KIND.NAME.
  void expect_flat(const std::string& kind, std::span<const float> flat, double tolerance) const {
    expect_flat(kind, flat, tolerance, [this](const std::string& name) { return expected(name); });
  }
  template <typename Expected>
  void expect_flat(const std::string& kind, std::span<const float> flat, double tolerance,
                   const Expected& expected_values) const {
    const ParameterLayout& layout = replica.layout();
    for (std::size_t p = 0; p < layout.size(); ++p) {
      const ParameterSpec& spec = layout.specs()[p];
      std::vector<ParameterExport> parts = spec.exports;
      if (parts.empty()) {
        parts.push_back({spec.name, spec.shape, 0});
      }
      for (const ParameterExport& part : parts) {
        const std::size_t begin = layout.offset(p) + static_cast<std::size_t>(part.offset_elements);
        std::vector<float> thinned;
        for (std::size_t i = 0; i < *count_of(part.shape); i += kStride) {
          thinned.push_back(flat[begin + i]);
        }
        EXPECT_LT(relative_difference(thinned, expected_values(kind + "." + part.hf_name)), tolerance)
            << kind << " of " << part.hf_name;
      }
    }
  }

 private:
  [[nodiscard]] std::vector<std::int32_t> integers(const std::string& name) const {
    const SafetensorsTensor& tensor = expected_.get(name);
    std::vector<std::int32_t> values(tensor.count());
    expected_.read(tensor, 0, std::as_writable_bytes(std::span(values)));
    return values;
  }

  std::optional<TunedModel> tuned_;
  std::filesystem::path folder_;  // of the model; with adapters, of the one beneath
  SafetensorsFile expected_;

 public:
  std::unique_ptr<Backend> backend;
  Arena arena;
  SelfCommunicator self;
  Replica replica;
  GradReducer reducer;
  Optimizer optimizer;
  std::vector<std::int32_t> inputs, targets;
  std::int64_t rows = 0, sequence = 0;
};

// The largest error of the logits of any position, in units of the largest logit.
double logits_error(Golden& golden, const std::vector<float>& expected) {
  const auto vocab = static_cast<std::size_t>(golden.replica.model().architecture().vocab);
  Tape tape(*golden.backend, golden.arena, nullptr);
  std::vector<float> actual;
  for (std::int64_t row = 0; row < golden.rows; ++row) {
    const auto tokens =
        std::span(golden.inputs)
            .subspan(static_cast<std::size_t>(row * golden.sequence), static_cast<std::size_t>(golden.sequence));
    for (std::size_t length = 1; length <= tokens.size(); ++length) {
      KvCache cache(golden.replica.model().architecture(), golden.replica.working_dtype(), *golden.backend);
      const Tensor logits =
          golden.replica.model().next_logits(tape, golden.replica.weights(), tokens.first(length), cache);
      EXPECT_EQ(logits.as<float>().size(), vocab);
      actual.insert(actual.end(), logits.as<float>().begin(), logits.as<float>().end());
    }
  }
  return relative_difference(actual, expected);
}

class GoldenModel : public testing::TestWithParam<const char*> {};

TEST_P(GoldenModel, GivesPyTorchsLogits) {
  Golden golden(GetParam(), Precision::kFp32);
  EXPECT_LT(logits_error(golden, golden.expected("logits")), 1e-5);
}

TEST_P(GoldenModel, GivesPyTorchsLoss) {
  Golden golden(GetParam(), Precision::kFp32);
  const Loss loss = golden.compute_gradient();
  const double expected = static_cast<double>(golden.expected("loss")[0]);
  EXPECT_EQ(loss.count, golden.rows * golden.sequence - 6);
  EXPECT_NEAR(loss.sum() / static_cast<double>(loss.count), expected, 1e-6 * expected);
}

TEST_P(GoldenModel, GivesPyTorchsGradients) {
  Golden golden(GetParam(), Precision::kFp32);
  static_cast<void>(golden.compute_gradient());
  golden.expect_flat("gradient", golden.reducer.gradient(), 1e-5);
  const double norm = std::sqrt(test::sum_of_squares(*golden.backend, golden.reducer.gradient()));
  EXPECT_NEAR(norm, static_cast<double>(golden.expected("gradient_norm")[0]), 1e-5 * norm);
}

TEST_P(GoldenModel, IsInPyTorchsStateAfterThreeStepsOfAdamW) {
  Golden golden(GetParam(), Precision::kFp32);
  std::int64_t step = 0;
  for (const double learning_rate : kLearningRates) {
    static_cast<void>(golden.compute_gradient());
    const std::span<const float> gradient = golden.reducer.gradient();
    golden.optimizer.update({.step = ++step,
                             .learning_rate = learning_rate,
                             .gradient_norm = std::sqrt(test::sum_of_squares(*golden.backend, gradient)),
                             .part = golden.optimizer.owned(),
                             .gradient = gradient,
                             .master = golden.replica.master()});
    golden.replica.refresh();
  }
  golden.expect_flat("weight", golden.replica.master(), 1e-5);
  golden.expect_flat("exp_avg", golden.optimizer.exp_avg(), 1e-4);
  golden.expect_flat("exp_avg_sq", golden.optimizer.exp_avg_sq(), 1e-4);
}

// bf16 keeps 8 bits: a value is off by up to 2^-9, and a few tens of such roundings lie one behind the other.
TEST_P(GoldenModel, StaysNearPyTorchsFp32InBf16) {
  Golden golden(GetParam(), Precision::kBf16);
  EXPECT_LT(logits_error(golden, golden.expected("logits")), 0.03);
  const Loss loss = golden.compute_gradient();
  EXPECT_NEAR(loss.sum() / static_cast<double>(loss.count), static_cast<double>(golden.expected("loss")[0]), 0.02);
  golden.expect_flat("gradient", golden.reducer.gradient(), 0.1);
}

// fp16 keeps 11 bits. The gradient is of the sum over the tokens, which needs no scale here.
TEST_P(GoldenModel, StaysNearPyTorchsFp32InFp16) {
  Golden golden(GetParam(), Precision::kFp16);
  EXPECT_LT(logits_error(golden, golden.expected("logits")), 0.004);
  const Loss loss = golden.compute_gradient();
  EXPECT_NEAR(loss.sum() / static_cast<double>(loss.count), static_cast<double>(golden.expected("loss")[0]), 0.0025);
  golden.expect_flat("gradient", golden.reducer.gradient(), 0.0125);
}

// Pairs of answers: make_preference.py made the file.
class GoldenPreference : public testing::TestWithParam<const char*> {};

TEST_P(GoldenPreference, GivesPyTorchsLossRewardsAndGradients) {
  const std::string kind = GetParam();
  Golden golden("llama-lora", Precision::kFp32);
  const SafetensorsFile expected(std::filesystem::path(LOCKSTEP_GOLDEN_MODELS) / "preference.safetensors");
  const auto integers = [&](const std::string& name) {
    std::vector<std::int32_t> values(expected.get(name).count());
    expected.read(expected.get(name), 0, std::as_writable_bytes(std::span(values)));
    return values;
  };
  const auto floats = [&](const std::string& name) {
    std::vector<float> values(expected.get(name).count());
    expected.read_f32(expected.get(name), 0, values);
    return values;
  };
  TokenBatch batch;
  batch.inputs = integers("inputs");
  batch.targets = integers("targets");
  for (const std::int32_t length : integers("lengths")) {
    batch.lengths.push_back(length);
  }
  batch.pairs = 2;
  // What fills a row up.
  batch.row_tokens = static_cast<std::int64_t>(batch.inputs.size()) + 4;
  batch.inputs.resize(static_cast<std::size_t>(batch.row_tokens), 0);
  batch.targets.resize(static_cast<std::size_t>(batch.row_tokens), -1);
  batch.lengths.push_back(4);

  Config config;
  config.tune = find_tuned_model(golden_folder("llama-lora"))->tune;
  config.preference.beta = 0.3;
  config.preference.loss = kind == "hinge" ? PreferenceLoss::kHinge
                           : kind == "ipo" ? PreferenceLoss::kIpo
                                           : PreferenceLoss::kSigmoid;
  if (kind == "smooth") {
    config.preference.label_smoothing = 0.2;
    config.preference.sft = 0.5;
  }
  ReferenceModel reference(config, golden.replica, *golden.backend);
  ASSERT_TRUE(reference.is_copy());  // lm_head and norm are trained whole
  static_cast<void>(reference.load(golden_folder("llama")));
  const std::vector<double> of_reference = reference.sums(batch, golden.arena);
  PreferenceSums sums;
  Tape tape(*golden.backend, golden.arena, &golden.reducer);
  const Loss loss = golden.replica.model().sequence_loss(
      tape, golden.replica.weights(), rows_of(batch), {}, [&](std::span<const double> policy, std::span<float> each) {
        sums = preference_loss(config.preference, batch, policy, of_reference, 0.5F, each);
      });
  tape.backward(loss.value);
  golden.reducer.end_micro_batch();
  golden.reducer.finish();

  EXPECT_NEAR(sums.loss / 2, static_cast<double>(floats(kind + ".loss")[0]), 1e-5);
  const std::vector<float> rewards = floats(kind + ".rewards");
  EXPECT_NEAR(sums.chosen_reward, static_cast<double>(rewards[0] + rewards[2]), 1e-5);
  EXPECT_NEAR(sums.rejected_reward, static_cast<double>(rewards[1] + rewards[3]), 1e-5);
  EXPECT_EQ(sums.right, (rewards[0] > rewards[1] ? 1 : 0) + (rewards[2] > rewards[3] ? 1 : 0));
  golden.expect_flat(kind + ".gradient", golden.reducer.gradient(), 2e-5, floats);
}

INSTANTIATE_TEST_SUITE_P(Losses, GoldenPreference, testing::Values("sigmoid", "smooth", "hinge", "ipo"),
                         [](const auto& instance) { return std::string(instance.param); });

// Adapters added to the weights beneath, once, give what they give beside them.
TEST(GoldenAdapters, GivePyTorchsLogitsWhenMerged) {
  for (const char* name : {"gpt2-lora", "llama-lora", "qwen2-lora", "gpt2-dora", "llama-dora"}) {
    const Golden apart(name, Precision::kFp32);
    const auto tuned = find_tuned_model(golden_folder(name));
    const auto base = golden_folder(tuned->base.string());
    Golden whole(tuned->base.string(), Precision::kFp32);
    const Architecture& architecture = whole.replica.model().architecture();
    whole.replica.fill(
        [&](std::span<float> weights) { load_merged(*tuned, base, architecture, *whole.backend, weights); });
    whole.inputs = apart.inputs;
    EXPECT_LT(logits_error(whole, apart.expected("logits")), 1e-5) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenModel,
                         testing::Values("gpt2", "llama", "llama-tied", "llama3", "llama-linear", "mistral", "qwen2",
                                         "qwen3", "gpt2-lora", "llama-lora", "qwen2-lora", "gpt2-dora", "llama-dora"),
                         [](const auto& model) {
                           std::string name = model.param;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace lockstep
