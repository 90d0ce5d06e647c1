// Models read back from GGUF files: the same bits from f32, and what does not fit named.
#include "trainer/gguf_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "tests/support/error_matcher.h"
#include "tests/support/temporary_folder.h"
#include "tests/trainer/model/golden_weights.h"
#include "tests/trainer/small_models.h"
#include "trainer/checkpoint/reader.h"
#include "trainer/export_gguf.h"
#include "trainer/formats/gguf_writer.h"
#include "trainer/gguf_tensors.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

void export_to(const GoldenWeights& model, GgufKind kind, const fs::path& path) {
  export_gguf({.architecture = model.architecture,
               .layout = model.parameters.layout,
               .weights = model.weights,
               .tokenizer = Tokenizer::bytes(),
               .ends = {.beginning = {}, .ends = {7, 9}},
               .name = "golden",
               .chat_template = "{{ messages }}",
               .template_name = "chatml"},
              kind, path);
}

std::vector<float> weights_in(const fs::path& path, const ParameterLayout& layout) {
  std::vector<float> weights(layout.total(), 99.0F);
  load_weights(path, layout, weights);
  return weights;
}

std::vector<float> logits_of(const Architecture& architecture, const std::vector<float>& weights) {
  const auto backend = make_cpu_backend(1);
  Replica replica(architecture, Precision::kFp32, *backend);
  replica.fill([&](std::span<float> all) { std::ranges::copy(weights, all.begin()); });
  Arena arena([&](std::size_t size_bytes) { return backend->allocate(size_bytes); });
  Tape tape(*backend, arena, nullptr);
  const std::vector<std::int32_t> tokens = random_tokens(48, architecture.vocab);
  const Tensor logits = replica.model().logits(tape, replica.weights(), {tokens, {}, 2, 24});
  return {logits.as<float>().begin(), logits.as<float>().end()};
}

class GgufModelOf : public testing::TestWithParam<const char*> {
 protected:
  [[nodiscard]] fs::path path() const { return folder_ / "m.gguf"; }
  TemporaryFolder folder_;
};

TEST_P(GgufModelOf, ComputesTheSameBitsAsTheModelItself) {
  const GoldenWeights model = golden(GetParam());
  export_to(model, GgufKind::kF32, path());
  const GgufModel found(path());
  Architecture expected = model.architecture;
  expected.family = expected.family == ModelFamily::kMistral ? ModelFamily::kLlama : expected.family;
  expected.norm_epsilon = static_cast<double>(static_cast<float>(expected.norm_epsilon));
  EXPECT_EQ(found.architecture(), expected);
  EXPECT_EQ(inverse_frequencies(found.architecture()), inverse_frequencies(model.architecture));
  const ParameterLayout layout = make_parameters(found.architecture()).layout;
  const std::vector<float> weights = weights_in(path(), layout);
  EXPECT_EQ(weights, model.weights);
  EXPECT_EQ(logits_of(found.architecture(), weights), logits_of(model.architecture, model.weights));
  EXPECT_EQ(found.template_name(), "chatml");
  EXPECT_EQ(found.text_ends().ends, (std::vector<std::int32_t>{7}));  // the format has room for one
}

// What is in the file, and nothing else, is what is computed with.
TEST_P(GgufModelOf, HasTheWeightsThatItsTypeLeft) {
  const GoldenWeights model = golden(GetParam());
  for (const GgufKind kind : {GgufKind::kBF16, GgufKind::kQ8_0, GgufKind::kQ4_0}) {
    export_to(model, kind, path());
    const std::vector<float> weights = weights_in(path(), model.parameters.layout);
    const double bound = kind == GgufKind::kQ4_0 ? 0.1 : 0.004;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      ASSERT_NEAR(weights[i], model.weights[i], bound) << i;
    }
    EXPECT_NE(weights, model.weights);
  }
}

INSTANTIATE_TEST_SUITE_P(All, GgufModelOf,
                         testing::Values("gpt2", "llama", "llama-linear", "llama-tied", "llama3", "mistral", "qwen2",
                                         "qwen3"),
                         [](const auto& parameter) {
                           std::string name = parameter.param;
                           std::erase(name, '-');
                           return name;
                         });

// A file that was made elsewhere has the factors alone.
TEST(GgufModelTest, TakesRotaryFactorsThatItKnowsNothingElseOf) {
  const TemporaryFolder folder;
  const GoldenWeights model = golden("llama3");
  export_to(model, GgufKind::kF32, folder / "m.gguf");
  std::string bytes = read_file(folder / "m.gguf");
  const std::size_t at = bytes.find(kGgufRopeLowFreqFactor);
  ASSERT_NE(at, std::string::npos);
  bytes[at] = 'x';
  write_file_atomic(folder / "m.gguf", bytes);
  const Architecture found = GgufModel(folder / "m.gguf").architecture();
  EXPECT_EQ(found.rope_scaling, RopeScaling::kNone);
  EXPECT_EQ(found.rope_factors, rope_factors_of(model.architecture));
  const std::vector<float> expected = inverse_frequencies(model.architecture);
  const std::vector<float> frequencies = inverse_frequencies(found);
  ASSERT_EQ(frequencies.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_FLOAT_EQ(frequencies[i], expected[i]);
  }
}

TEST(GgufModelTest, HasTheZeroBiasesOfAModelWithoutThem) {
  const TemporaryFolder folder;
  GoldenWeights model = golden("gpt2");
  model.architecture.bias = false;
  model.parameters = make_parameters(model.architecture);
  model.weights.assign(model.parameters.layout.total(), 0.0F);
  for (std::size_t i = 0; i < model.weights.size(); ++i) {
    model.weights[i] = static_cast<float>(i % 17) / 16.0F - 0.5F;
  }
  export_to(model, GgufKind::kF32, folder / "m.gguf");
  const GgufModel found(folder / "m.gguf");
  EXPECT_TRUE(found.architecture().bias);
  const std::vector<float> weights = weights_in(folder / "m.gguf", make_parameters(found.architecture()).layout);
  const std::vector<float> logits = logits_of(found.architecture(), weights);
  const std::vector<float> expected = logits_of(model.architecture, model.weights);
  ASSERT_EQ(logits.size(), expected.size());
  for (std::size_t i = 0; i < logits.size(); ++i) {
    ASSERT_FLOAT_EQ(logits[i], expected[i]);
  }
}

// A llama of one block, all weights of which are zero.
class BrokenGgufModel : public testing::Test {
 protected:
  BrokenGgufModel() {
    for (const auto& [key, value] : {std::pair<const char*, std::uint32_t>{"block_count", 1},
                                     {"attention.head_count", 2},
                                     {"embedding_length", 8},
                                     {"feed_forward_length", 12},
                                     {"context_length", 16}}) {
      numbers_.emplace_back(std::string("llama.") + key, value);
    }
    tensors_ = {
        {"token_embd.weight", {10, 8}},       {"output_norm.weight", {8}},       {"blk.0.attn_norm.weight", {8}},
        {"blk.0.attn_q.weight", {8, 8}},      {"blk.0.attn_k.weight", {8, 8}},   {"blk.0.attn_v.weight", {8, 8}},
        {"blk.0.attn_output.weight", {8, 8}}, {"blk.0.ffn_norm.weight", {8}},    {"blk.0.ffn_gate.weight", {12, 8}},
        {"blk.0.ffn_up.weight", {12, 8}},     {"blk.0.ffn_down.weight", {8, 12}}};
  }
  GgufTensor& tensor(const std::string& name) {
    return *std::ranges::find_if(tensors_, [&](const GgufTensor& one) { return one.name == name; });
  }
  std::uint32_t& number(const std::string& key) {
    const auto found = std::ranges::find_if(numbers_, [&](const auto& one) { return one.first == key; });
    return found != numbers_.end() ? found->second : numbers_.emplace_back(key, 0).second;
  }
  void load() {
    GgufMetadata metadata;
    metadata.add("general.architecture", architecture_);
    for (const auto& [key, value] : numbers_) {
      metadata.add(key, value);
    }
    if (!rope_type_.empty()) {
      metadata.add("llama.rope.scaling.type", rope_type_);
    }
    GgufWriter writer(path(), metadata, tensors_);
    writer.finish();
    static_cast<void>(weights_in(path(), make_parameters(GgufModel(path()).architecture()).layout));
  }
  std::string refusal(ErrorCode code = ErrorCode::kUsage) {
    return message_of_error(code, [&] { load(); });
  }
  [[nodiscard]] fs::path path() const { return folder_ / "m.gguf"; }

  TemporaryFolder folder_;
  std::string architecture_ = "llama";
  std::string rope_type_;
  std::vector<std::pair<std::string, std::uint32_t>> numbers_;
  std::vector<GgufTensor> tensors_;
};

TEST_F(BrokenGgufModel, LoadsAsLongAsItIsWhole) { EXPECT_NO_THROW(load()); }

TEST_F(BrokenGgufModel, NamesATensorThatIsMissing) {
  tensor("blk.0.attn_k.weight").name = "blk.0.attn_kk.weight";
  EXPECT_EQ(refusal(), "load " + path().string() + ": tensor \"blk.0.attn_k.weight\" is missing");
  tensor("token_embd.weight").name = "embd";
  EXPECT_EQ(refusal(), "load " + path().string() + ": tensor \"token_embd.weight\" is missing");
}

TEST_F(BrokenGgufModel, NamesATensorOfAnotherShape) {
  tensor("blk.0.ffn_down.weight").shape = {8, 13};
  EXPECT_EQ(refusal(),
            "load " + path().string() + ": tensor \"blk.0.ffn_down.weight\" has shape [8, 13], expected [8, 12]");
}

TEST_F(BrokenGgufModel, NamesATensorThatNothingIsDoneWith) {
  tensors_.push_back({"blk.0.attn_q.bias", {8}});
  EXPECT_EQ(refusal(), "load " + path().string() + ": nothing is known to do with tensor \"blk.0.attn_q.bias\"");
}

TEST_F(BrokenGgufModel, NamesRotaryFactorsThatDoNotFit) {
  tensors_.push_back({"rope_freqs.weight", {3}});
  EXPECT_THAT(refusal(), HasSubstr("tensor \"rope_freqs.weight\" has 3 values, expected 2"));
  tensors_.back().shape = {2};
  EXPECT_THAT(refusal(), HasSubstr("a rotary factor is not positive"));
}

TEST_F(BrokenGgufModel, NamesKeysThatItCannotFollow) {
  number("llama.expert_count") = 8;
  EXPECT_THAT(refusal(ErrorCode::kUnsupported), HasSubstr("llama.expert_count is 8, only 0 is supported"));
  number("llama.expert_count") = 0;
  number("llama.rope.dimension_count") = 2;
  EXPECT_THAT(refusal(ErrorCode::kUnsupported), HasSubstr("llama.rope.dimension_count is 2, only 4 is supported"));
  number("llama.rope.dimension_count") = 4;
  number("llama.attention.head_count") = 3;
  EXPECT_THAT(refusal(), HasSubstr("width 8 is not a multiple of 3 heads"));
  number("llama.attention.head_count") = 2;
  number("llama.block_count") = 0;
  EXPECT_THAT(refusal(), HasSubstr("layers is 0, expected a positive number"));
  number("llama.block_count") = 1;
  rope_type_ = "yarn";
  EXPECT_THAT(refusal(ErrorCode::kUnsupported), HasSubstr("llama.rope.scaling.type is \"yarn\", only none and linear"));
  rope_type_ = "none";
  EXPECT_NO_THROW(load());
  std::erase_if(numbers_, [](const auto& one) { return one.first == "llama.context_length"; });
  EXPECT_THAT(refusal(ErrorCode::kCorrupt), HasSubstr("llama.context_length is missing"));
  architecture_ = "mamba";
  EXPECT_THAT(refusal(ErrorCode::kUnsupported),
              HasSubstr("general.architecture is \"mamba\", only gpt2, llama, qwen2"));
}

TEST_F(BrokenGgufModel, StaysWithinItsWindow) {
  number("llama.attention.sliding_window") = 8;
  load();
  EXPECT_EQ(GgufModel(path()).architecture().context, 8);
}

}  // namespace
}  // namespace lockstep
