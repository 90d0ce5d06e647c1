#include "trainer/model/architecture.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "tests/support/error_matcher.h"
#include "tests/trainer/small_models.h"

namespace lockstep {
namespace {

using nlohmann::json;
using testing::HasSubstr;

json gpt2_json() { return json::parse(to_hf_config(small_gpt2(), {})); }
json llama_json() { return json::parse(to_hf_config(small_llama(), {})); }
Architecture read(const json& config) { return from_hf_config(config.dump(), "config.json"); }
std::string refusal(const json& config) {
  return message_of_error(ErrorCode::kUsage, [&] { static_cast<void>(read(config)); });
}
json with(json config, const std::string& key, const json& value) {
  config[key] = value;
  return config;
}

TEST(HfConfig, ReadsBackWhatItWrites) {
  EXPECT_EQ(read(gpt2_json()), small_gpt2());
  EXPECT_EQ(read(llama_json()), small_llama());

  Architecture gpt2 = small_gpt2();
  gpt2.bias = false;
  gpt2.hidden = 100;
  gpt2.norm_epsilon = 1.0 / 3e5;
  EXPECT_EQ(from_hf_config(to_hf_config(gpt2, {}), ""), gpt2);

  Architecture llama = small_llama();
  llama.tied = true;
  llama.kv_heads = 1;
  llama.rope_theta = 500000.5;
  EXPECT_EQ(from_hf_config(to_hf_config(llama, {}), ""), llama);
  llama.rope_scaling = RopeScaling::kLinear;
  llama.rope_factor = 4;
  EXPECT_EQ(from_hf_config(to_hf_config(llama, {}), ""), llama);
  llama.rope_scaling = RopeScaling::kLlama3;
  llama.rope_low_freq_factor = 1.5;
  llama.rope_high_freq_factor = 3;
  llama.rope_original_context = 4096;
  llama.head_dim = 6;
  for (const ModelFamily family :
       {ModelFamily::kLlama, ModelFamily::kMistral, ModelFamily::kQwen2, ModelFamily::kQwen3}) {
    llama.family = family;
    EXPECT_EQ(from_hf_config(to_hf_config(llama, {}), ""), llama) << name_of(family);
  }
}

TEST(HfConfig, TakesMistralWithinItsWindow) {
  Architecture mistral = small_llama();
  mistral.family = ModelFamily::kMistral;
  const json config = json::parse(to_hf_config(mistral, {}));
  EXPECT_EQ(config.at("architectures"), json({"MistralForCausalLM"}));
  EXPECT_TRUE(config.at("sliding_window").is_null());
  EXPECT_EQ(read(config).context, 24);
  EXPECT_EQ(read(with(config, "sliding_window", 16)).context, 16);
  EXPECT_EQ(read(with(config, "sliding_window", 4096)).context, 24);
}

// Long waves are stretched, short ones stay, and those between the two evenly from one to the other.
TEST(Architecture, StretchesRotaryFrequencies) {
  Architecture a = small_llama();
  a.rope_theta = 10000;
  const std::vector<float> plain = inverse_frequencies(a);
  EXPECT_THAT(plain, testing::ElementsAre(1.0F, 0.1F, 0.01F, 0.001F));
  a.rope_scaling = RopeScaling::kLinear;
  a.rope_factor = 4;
  EXPECT_THAT(inverse_frequencies(a), testing::ElementsAre(0.25F, 0.025F, 0.0025F, 0.00025F));
  a.rope_scaling = RopeScaling::kLlama3;
  a.rope_low_freq_factor = 1;
  a.rope_high_freq_factor = 3;
  a.rope_original_context = 126;  // 20.05, 2.005, 0.2005 and 0.02 waves
  const std::vector<float> stretched = inverse_frequencies(a);
  EXPECT_EQ(stretched[0], 1.0F);
  EXPECT_NEAR(stretched[1], 0.1 * (0.25 + 0.75 * 0.50268), 1e-6);
  EXPECT_EQ(stretched[2], 0.0025F);
  EXPECT_EQ(stretched[3], 0.00025F);
}

TEST(HfConfig, SaysWhatTransformersAsksFor) {
  const json gpt2 =
      json::parse(to_hf_config(small_gpt2(), {.end_of_text = 60, .dropout = 0.25, .dtype = DType::kBF16}));
  EXPECT_EQ(gpt2.at("architectures"), json({"GPT2LMHeadModel"}));
  EXPECT_EQ(gpt2.at("eos_token_id"), 60);
  EXPECT_EQ(gpt2.at("attn_pdrop"), 0.25);
  EXPECT_EQ(gpt2.at("torch_dtype"), "bfloat16");
  EXPECT_EQ(gpt2.at("n_inner"), 128);
  EXPECT_TRUE(gpt2_json().at("eos_token_id").is_null());
  EXPECT_EQ(llama_json().at("architectures"), json({"LlamaForCausalLM"}));
  EXPECT_EQ(llama_json().at("head_dim"), 8);
}

TEST(HfConfig, NamesTheTokensThatTextsBeginAndEndWith) {
  const auto ends = [](const std::string& keys) {
    return text_ends_of_hf_config(R"({"vocab_size": 100, )" + keys + "}", "config.json");
  };
  EXPECT_EQ(ends(R"("bos_token_id": 7, "eos_token_id": 9)").beginning, 7);
  EXPECT_THAT(ends(R"("eos_token_id": 9)").ends, testing::ElementsAre(9));
  EXPECT_THAT(ends(R"("eos_token_id": [9, 0, 99])").ends, testing::ElementsAre(9, 0, 99));
  const HfTextEnds none = ends(R"("bos_token_id": null, "eos_token_id": null)");
  EXPECT_EQ(none.beginning, std::nullopt);
  EXPECT_TRUE(none.ends.empty());
  // Ids that the vocabulary does not have: -1 means none, and small models keep gpt2's 50256.
  EXPECT_EQ(ends(R"("bos_token_id": 100)").beginning, std::nullopt);
  EXPECT_THAT(ends(R"("eos_token_id": [-1, 50256, 3])").ends, testing::ElementsAre(3));
  for (const char* id : {R"("9")", "[9, null]", "9.5", "[[9]]", "{}"}) {
    EXPECT_THAT(message_of_error(ErrorCode::kUsage, [&] { (void)ends(std::string(R"("eos_token_id": )") + id); }),
                testing::StartsWith("config.json: \"eos_token_id\" is "))
        << id;
  }
}

TEST(HfConfig, FillsInTheDefaultsOfTransformers) {
  const Architecture gpt2 = from_hf_config(
      R"({"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 4, "vocab_size": 9, "n_inner": null})",
      "");
  EXPECT_EQ(gpt2.hidden, 32);
  EXPECT_EQ(gpt2.norm_epsilon, 1e-5);
  EXPECT_TRUE(gpt2.tied && gpt2.bias);

  const Architecture llama = from_hf_config(
      R"({"model_type": "llama", "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8,
          "intermediate_size": 12, "max_position_embeddings": 4, "vocab_size": 9, "head_dim": null})",
      "");
  EXPECT_EQ(llama.kv_heads, 2);
  EXPECT_EQ(llama.norm_epsilon, 1e-6);
  EXPECT_EQ(llama.rope_theta, 10000.0);
  EXPECT_FALSE(llama.tied);
}

TEST(HfConfig, ReadsTheRotaryBaseOfOldAndNewFiles) {
  json config = llama_json();
  config["rope_theta"] = 7.0;
  EXPECT_EQ(read(config).rope_theta, 7.0);
  config["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 500000}};
  EXPECT_EQ(read(config).rope_theta, 500000.0);
  config["rope_scaling"] = nullptr;
  EXPECT_EQ(read(config).rope_theta, 500000.0);
}

TEST(HfConfig, RefusesWhatItCannotCompute) {
  EXPECT_EQ(refusal(with(gpt2_json(), "model_type", "bert")),
            "config.json: \"model_type\" is \"bert\", only gpt2, llama, mistral, qwen2 and qwen3 are supported");
  EXPECT_EQ(refusal(with(gpt2_json(), "activation_function", "relu")),
            "config.json: \"activation_function\" is \"relu\", only \"gelu_new\" is supported");
  EXPECT_EQ(refusal(with(gpt2_json(), "scale_attn_by_inverse_layer_idx", true)),
            "config.json: \"scale_attn_by_inverse_layer_idx\" is true, only false is supported");
  EXPECT_EQ(refusal(with(gpt2_json(), "scale_attn_weights", false)),
            "config.json: \"scale_attn_weights\" is false, only true is supported");
  EXPECT_EQ(refusal(with(gpt2_json(), "add_cross_attention", true)),
            "config.json: \"add_cross_attention\" is true, only false is supported");
  EXPECT_EQ(refusal(with(gpt2_json(), "tie_word_embeddings", false)),
            "config.json: \"tie_word_embeddings\" is false, only true is supported");
  EXPECT_EQ(refusal(with(llama_json(), "hidden_act", "gelu")),
            "config.json: \"hidden_act\" is \"gelu\", only \"silu\" is supported");
  EXPECT_EQ(refusal(with(llama_json(), "attention_bias", true)),
            "config.json: \"attention_bias\" is true, only false is supported");
  EXPECT_EQ(refusal(with(llama_json(), "mlp_bias", true)),
            "config.json: \"mlp_bias\" is true, only false is supported");
  EXPECT_EQ(refusal(with(llama_json(), "use_sliding_window", true)),
            "config.json: \"use_sliding_window\" is true, only false is supported");
  EXPECT_EQ(refusal(with(llama_json(), "rope_scaling", {{"rope_type", "llama3"}})),
            "config.json: \"factor\" is missing");
  EXPECT_EQ(refusal(with(llama_json(), "rope_scaling", "llama3")),
            "config.json: \"rope_scaling\" is \"llama3\", expected an object");
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    EXPECT_EQ(refusal(with(llama_json(), key, {{"rope_type", "yarn"}})),
              std::string("config.json: \"") + key +
                  "\" has the type \"yarn\", only \"default\", \"linear\" and \"llama3\" are supported");
  }
  json llama3 = llama_json();
  llama3["rope_scaling"] = {{"rope_type", "llama3"},
                            {"factor", 8.0},
                            {"low_freq_factor", 4.0},
                            {"high_freq_factor", 4.0},
                            {"original_max_position_embeddings", 8192}};
  EXPECT_EQ(refusal(llama3),
            "config.json: rope's low and high frequency factors are 4 and 4, expected the first to be positive and "
            "smaller");
  llama3["rope_scaling"]["factor"] = 0.5;
  EXPECT_EQ(refusal(llama3), "config.json: a rope factor of 0.5, expected at least 1");
}

TEST(HfConfig, NamesWhatIsMissingOrOfAnotherType) {
  for (const char* key : {"n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "model_type"}) {
    json config = gpt2_json();
    config.erase(key);
    EXPECT_EQ(refusal(config), std::string("config.json: \"") + key + "\" is missing");
    EXPECT_EQ(refusal(with(gpt2_json(), key, nullptr)), std::string("config.json: \"") + key + "\" is missing");
    EXPECT_EQ(refusal(with(gpt2_json(), key, json::array())),
              std::string("config.json: \"") + key + "\" is [], expected another type");
  }
  EXPECT_THAT(refusal(with(gpt2_json(), "n_layer", 2.5)), HasSubstr("\"n_layer\" is 2.5, expected another type"));
  EXPECT_THAT(refusal(with(llama_json(), "tie_word_embeddings", "yes")), HasSubstr("\"yes\", expected another type"));
}

TEST(HfConfig, RefusesTextThatIsNotAnObject) {
  for (const char* text : {"", "[]", "3", "{", "null"}) {
    EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { static_cast<void>(from_hf_config(text, "config.json")); }),
              "config.json: not a JSON object");
  }
}

TEST(HfConfig, RefusesSizesThatDoNotGoTogether) {
  EXPECT_EQ(refusal(with(gpt2_json(), "n_head", 5)), "config.json: width 32 is not a multiple of 5 heads");
  EXPECT_EQ(refusal(with(llama_json(), "num_key_value_heads", 3)),
            "config.json: 4 heads are not a multiple of 3 kv_heads");
  EXPECT_THAT(refusal(with(gpt2_json(), "n_layer", 0)), HasSubstr("layers is 0"));
  EXPECT_THAT(refusal(with(gpt2_json(), "n_embd", -32)), HasSubstr("width is -32"));
  EXPECT_THAT(refusal(with(llama_json(), "num_attention_heads", 0)), HasSubstr("heads is 0"));
  json odd = llama_json();
  odd["hidden_size"] = 12;
  odd["head_dim"] = 3;
  EXPECT_EQ(refusal(odd), "config.json: head size 3 is odd, rotary positions need pairs");
}

// Products of sizes must fit 63 bits, and a file of a few bytes must not ask for all memory there is.
TEST(HfConfig, RefusesSizesBeyondAnyModel) {
  for (const char* key : {"n_layer", "n_embd", "n_positions", "vocab_size", "n_inner"}) {
    for (const std::int64_t size : {std::int64_t{1} << 33, std::int64_t{9'223'372'036'854'775'807}}) {
      EXPECT_THAT(refusal(with(gpt2_json(), key, size)), HasSubstr("expected at most")) << key;
    }
  }
}

TEST(HfConfig, RefusesNumbersThatNoModelHas) {
  const auto refusal = [](const char* key, const char* value) {
    const std::string text = std::string(R"({"model_type": "llama", "num_hidden_layers": 1, "num_attention_heads": 2,
        "hidden_size": 32, "intermediate_size": 64, "vocab_size": 61, "max_position_embeddings": 24, ")") +
                             key + "\": " + value + "}";
    return message_of_error(ErrorCode::kUsage, [&] { static_cast<void>(from_hf_config(text, "config.json")); });
  };
  EXPECT_EQ(refusal("rope_theta", "0"), "config.json: rope's base is 0, expected a number above 0");
  EXPECT_EQ(refusal("rope_theta", "-5"), "config.json: rope's base is -5, expected a number above 0");
  EXPECT_EQ(refusal("rms_norm_eps", "-1"), "config.json: the norms' epsilon is -1, expected a number above 0");
}

TEST(Architecture, OfAConfigurationWithBadSizesIsRefused) {
  ModelConfig model;
  model.layers = 2;
  model.heads = model.kv_heads = 3;
  model.width = 32;
  model.hidden = 64;
  model.context = 16;
  model.vocab = 257;
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { static_cast<void>(architecture_of(model)); }),
            "model: width 32 is not a multiple of 3 heads");
  model.heads = model.kv_heads = 4;
  model.tied = false;
  EXPECT_EQ(message_of_error(ErrorCode::kUsage, [&] { static_cast<void>(architecture_of(model)); }),
            "model: gpt2's head is always tied to its embedding");
  model.family = ModelFamily::kLlama;
  EXPECT_FALSE(architecture_of(model).tied);
}

}  // namespace
}  // namespace lockstep
