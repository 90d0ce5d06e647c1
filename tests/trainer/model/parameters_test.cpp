#include "trainer/model/parameters.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "base/error.h"
#include "tests/trainer/small_models.h"

namespace lockstep {
namespace {

using testing::ElementsAre;

Architecture wide(Architecture a) {
  a.width = 128;
  a.head_dim = 32;
  a.hidden = 512;
  a.vocab = 300;
  return a;
}

std::vector<float> initialized(const Architecture& a, std::uint64_t seed, int threads = 1) {
  const ModelParameters parameters = make_parameters(a);
  ThreadPool pool(threads);
  std::vector<float> master(parameters.layout.total());
  initialize(a, parameters, seed, pool, master);
  return master;
}

std::vector<std::string> names_of(const ParameterLayout& layout) {
  std::vector<std::string> names;
  for (const ParameterSpec& spec : layout.specs()) {
    names.push_back(spec.name);
  }
  return names;
}

TEST(Parameters, OfGpt2HaveTheNamesAndShapesOfTransformers) {
  Architecture a = small_gpt2();
  a.layers = 1;
  const ParameterLayout layout = make_parameters(a).layout;
  EXPECT_THAT(
      names_of(layout),
      ElementsAre("transformer.ln_f.weight", "transformer.ln_f.bias", "transformer.h.0.mlp.c_proj.weight",
                  "transformer.h.0.mlp.c_proj.bias", "transformer.h.0.mlp.c_fc.weight", "transformer.h.0.mlp.c_fc.bias",
                  "transformer.h.0.ln_2.weight", "transformer.h.0.ln_2.bias", "transformer.h.0.attn.c_proj.weight",
                  "transformer.h.0.attn.c_proj.bias", "transformer.h.0.attn.c_attn.weight",
                  "transformer.h.0.attn.c_attn.bias", "transformer.h.0.ln_1.weight", "transformer.h.0.ln_1.bias",
                  "transformer.wpe.weight", "transformer.wte.weight"));
  EXPECT_THAT(layout.specs()[2].shape, ElementsAre(128, 32));
  EXPECT_THAT(layout.specs()[10].shape, ElementsAre(32, 96));
  EXPECT_THAT(layout.specs()[14].shape, ElementsAre(24, 32));
  EXPECT_THAT(layout.specs()[15].shape, ElementsAre(61, 32));
}

TEST(Parameters, OfGpt2HaveTheKnownNumber) {
  Architecture a = small_gpt2();  // GPT-2 124M
  a.layers = 12;
  a.heads = a.kv_heads = 12;
  a.width = 768;
  a.head_dim = 64;
  a.hidden = 3072;
  a.context = 1024;
  a.vocab = 50257;
  EXPECT_EQ(make_parameters(a).layout.parameters(), 124'439'808U);
}

TEST(Parameters, DecayInMatricesAlone) {
  for (const Architecture& a : {small_gpt2(), small_llama()}) {
    const ParameterLayout layout = make_parameters(a).layout;
    for (const ParameterSpec& spec : layout.specs()) {
      EXPECT_EQ(spec.decay, spec.shape.size() == 2) << spec.name;
    }
  }
}

TEST(Parameters, TiedWeightsAreOneParameter) {
  Architecture a = small_llama();
  EXPECT_TRUE(make_parameters(a).layout.find("lm_head.weight"));
  a.tied = true;
  const ModelParameters tied = make_parameters(a);
  EXPECT_FALSE(tied.layout.find("lm_head.weight"));
  EXPECT_EQ(tied.head, tied.token_table);
}

// Names as peft has them in its files.
std::vector<std::string> exports_of(const ParameterLayout& layout) {
  std::vector<std::string> names;
  for (const ParameterSpec& spec : layout.specs()) {
    for (const ParameterExport& part : spec.exports) {
      names.push_back(part.hf_name);
    }
  }
  return names;
}

TEST(TunedParameters, OfAdaptersAreNamedAsInPeft) {
  Architecture a = small_llama();
  a.layers = 1;
  TuneConfig tune;
  tune.method = TuneMethod::kLora;
  tune.rank = 2;
  tune.targets = "q_proj, v_proj,mlp.down_proj";
  tune.also_train = "norm";
  const ModelParameters parameters = make_parameters(a, tune);
  EXPECT_THAT(exports_of(parameters.layout),
              testing::UnorderedElementsAre("base_model.model.model.norm.weight",
                                            "base_model.model.model.layers.0.input_layernorm.weight",
                                            "base_model.model.model.layers.0.post_attention_layernorm.weight",
                                            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
                                            "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
                                            "base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight",
                                            "base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight",
                                            "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight",
                                            "base_model.model.model.layers.0.mlp.down_proj.lora_B.weight"));
  const std::size_t whole = make_parameters(a).layout.parameters();
  const std::size_t norms = 3 * static_cast<std::size_t>(a.width);
  EXPECT_EQ(parameters.frozen.parameters(), whole - norms);
}

TEST(TunedParameters, OfFrozenModelsAreTheLastBlocksAndWhatIsNamed) {
  Architecture a = small_gpt2();
  a.layers = 3;
  TuneConfig tune;
  tune.method = TuneMethod::kFreeze;
  tune.blocks = 1;
  tune.also_train = "ln_f";
  const ModelParameters parameters = make_parameters(a, tune);
  for (const ParameterSpec& spec : parameters.layout.specs()) {
    EXPECT_TRUE(spec.name.starts_with("transformer.h.2.") || spec.name.starts_with("transformer.ln_f.")) << spec.name;
  }
  EXPECT_EQ(parameters.layout.size(), 12U + 2U);
  EXPECT_EQ(parameters.layout.size() + parameters.frozen.size(), make_parameters(a).layout.size());
}

TEST(FlopPerToken, IsThatOfChowdheryEtAlWhereEverythingIsTrained) {
  const Architecture a = small_gpt2();
  const ModelParameters parameters = make_parameters(a);
  const auto count = static_cast<double>(parameters.layout.parameters());
  EXPECT_EQ(training_flop_per_token(a, parameters, 24), 6 * count + 12.0 * 2 * 32 * 24);
}

// The last of two blocks: the one before it, and the rows that are looked up, have no backward pass.
TEST(FlopPerToken, LeavesOutGradientsThatNobodyAsksFor) {
  const Architecture a = small_llama();
  TuneConfig tune;
  tune.method = TuneMethod::kFreeze;
  tune.blocks = 1;
  const ModelParameters last = make_parameters(a, tune);
  const auto table = static_cast<double>(a.vocab * a.width);
  const auto trained = static_cast<double>(last.layout.parameters());
  const auto before = trained;  // a block is like the other
  const auto behind = table + static_cast<double>(a.width);
  const auto query = static_cast<double>(a.query_width());
  EXPECT_EQ(training_flop_per_token(a, last, 24), 6 * trained + 2 * before + 4 * behind + (12 + 4) * query * 24);

  tune.method = TuneMethod::kLora;
  const ModelParameters lora = make_parameters(a, tune);
  const auto adapters = static_cast<double>(lora.layout.parameters());
  const auto frozen = static_cast<double>(lora.frozen.parameters()) - table;
  const double flop = training_flop_per_token(a, lora, 24);
  // Nobody asks for the gradient of what the first adapter reads.
  const auto first = static_cast<double>(a.width + a.width * (a.query_width() + 2 * a.kv_width()));
  EXPECT_EQ(flop, 6 * adapters + 4 * frozen - 2 * first + 2 * 12 * query * 24);
}

TEST(TunedParameters, RefuseNamesThatNothingHas) {
  TuneConfig tune;
  tune.method = TuneMethod::kLora;
  tune.targets = "q_proj,c_attn";
  EXPECT_THROW(static_cast<void>(make_parameters(small_llama(), tune)), Error);
  tune.targets = "all";
  tune.also_train = "wte";
  EXPECT_THROW(static_cast<void>(make_parameters(small_llama(), tune)), Error);
}

TEST(Initialization, IsAFunctionOfTheSeedAlone) {
  for (const Architecture& a : {wide(small_gpt2()), wide(small_llama())}) {
    const std::vector<float> once = initialized(a, 5);
    EXPECT_EQ(once, initialized(a, 5));
    EXPECT_EQ(once, initialized(a, 5, 3));
    EXPECT_NE(once, initialized(a, 6));
  }
}

TEST(Initialization, DrawsEveryMatrixFromAStreamOfItsOwn) {
  const Architecture a = small_gpt2();
  const ParameterLayout layout = make_parameters(a).layout;
  const std::vector<float> master = initialized(a, 5);
  const auto first = [&](const char* name) { return master[layout.offset(*layout.find(name))]; };
  EXPECT_NE(first("transformer.h.0.mlp.c_fc.weight"), first("transformer.h.1.mlp.c_fc.weight"));
  EXPECT_NE(first("transformer.wte.weight"), first("transformer.wpe.weight"));
}

TEST(Initialization, HasTheDeviationsOfGpt2) {
  for (const Architecture& a : {wide(small_gpt2()), wide(small_llama())}) {
    const ModelParameters parameters = make_parameters(a);
    const ParameterLayout& layout = parameters.layout;
    const std::vector<float> master = initialized(a, 5);
    for (std::size_t p = 0; p < layout.size(); ++p) {
      const ParameterSpec& spec = layout.specs()[p];
      const auto values = std::span(master).subspan(layout.offset(p), layout.count(p));
      if (spec.shape.size() == 1) {
        const float expected = spec.name.ends_with("weight") ? 1.0F : 0.0F;
        EXPECT_TRUE(std::ranges::all_of(values, [&](float v) { return v == expected; })) << spec.name;
        continue;
      }
      const bool ends_branch = spec.name.find("c_proj") != std::string::npos ||
                               spec.name.find("o_proj") != std::string::npos ||
                               spec.name.find("down_proj") != std::string::npos;
      const double deviation = ends_branch ? 0.02 / std::sqrt(2.0 * 2) : 0.02;
      double sum = 0;
      double squares = 0;
      std::size_t beyond_two = 0;
      for (const float v : values) {
        sum += static_cast<double>(v);
        squares += static_cast<double>(v) * static_cast<double>(v);
        beyond_two += std::abs(static_cast<double>(v)) > 2 * deviation ? 1U : 0U;
      }
      const auto n = static_cast<double>(values.size());
      // Five standard errors of the mean, of the deviation, and of the share beyond two deviations, 4.55 %.
      EXPECT_NEAR(sum / n, 0, 5 * deviation / std::sqrt(n)) << spec.name;
      EXPECT_NEAR(std::sqrt(squares / n), deviation, 5 * deviation / std::sqrt(2 * n)) << spec.name;
      EXPECT_NEAR(static_cast<double>(beyond_two) / n, 0.0455, 5 * 0.2084 / std::sqrt(n)) << spec.name;
    }
  }
}

}  // namespace
}  // namespace lockstep
