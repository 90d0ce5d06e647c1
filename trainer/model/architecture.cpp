#include "trainer/model/architecture.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace lockstep {
namespace {

using nlohmann::json;

// The configuration's limits: far beyond any model, and such that its parameters can be counted in 63 bits.
constexpr std::int64_t kMostLayers = 10'000;
constexpr std::int64_t kMostHeads = 65'536;
constexpr std::int64_t kMostWidth = 1'048'576;
constexpr std::int64_t kMostHidden = 4'194'304;
constexpr std::int64_t kMostTokens = 16'777'216;  // of context and vocabulary

void check(const Architecture& a, const std::string& origin) {
  const auto in_range = [&](const char* name, std::int64_t value, std::int64_t most) {
    require(value > 0, "{}: {} is {}, expected a positive number", origin, name, value);
    require(value <= most, "{}: {} is {}, expected at most {}", origin, name, value, most);
  };
  in_range("layers", a.layers, kMostLayers);
  in_range("heads", a.heads, kMostHeads);
  in_range("kv_heads", a.kv_heads, kMostHeads);
  in_range("width", a.width, kMostWidth);
  in_range("hidden", a.hidden, kMostHidden);
  in_range("context", a.context, kMostTokens);
  in_range("vocab", a.vocab, kMostTokens);
  require(a.width % a.heads == 0, "{}: width {} is not a multiple of {} heads", origin, a.width, a.heads);
  require(a.heads % a.kv_heads == 0, "{}: {} heads are not a multiple of {} kv_heads", origin, a.heads, a.kv_heads);
  require(a.family != ModelFamily::kGpt2 || a.kv_heads == a.heads,
          "{}: gpt2 has no grouped queries: kv_heads {}, heads {}", origin, a.kv_heads, a.heads);
  require(a.family != ModelFamily::kGpt2 || a.tied, "{}: gpt2's head is always tied to its embedding", origin);
  require(a.family != ModelFamily::kLlama || a.head_dim() % 2 == 0,
          "{}: head size {} is odd, rotary positions need pairs", origin, a.head_dim());
}

class Reader {
 public:
  Reader(const json& object, const std::string& origin) : object_(object), origin_(origin) {}

  template <typename T>
  [[nodiscard]] T get(const char* key) const {
    require(object_.contains(key) && !object_.at(key).is_null(), "{}: \"{}\" is missing", origin_, key);
    return value<T>(key);
  }
  template <typename T>
  [[nodiscard]] T get(const char* key, T otherwise) const {
    return object_.contains(key) && !object_.at(key).is_null() ? value<T>(key) : otherwise;
  }
  template <typename T>
  void expect(const char* key, const T& only) const {
    const T found = get<T>(key, only);
    require(found == only, "{}: \"{}\" is {}, only {} is supported", origin_, key, json(found).dump(),
            json(only).dump());
  }

 private:
  template <typename T>
  [[nodiscard]] T value(const char* key) const {
    const json& found = object_.at(key);
    const bool fits = std::is_same_v<T, bool>          ? found.is_boolean()
                      : std::is_same_v<T, std::string> ? found.is_string()
                      : std::is_integral_v<T>          ? found.is_number_integer()
                                                       : found.is_number();
    require(fits, "{}: \"{}\" is {}, expected another type", origin_, key, found.dump());
    return found.get<T>();
  }

  const json& object_;
  const std::string& origin_;
};

Architecture read_gpt2(const Reader& config) {
  Architecture a;
  a.family = ModelFamily::kGpt2;
  a.layers = config.get<std::int64_t>("n_layer");
  a.heads = config.get<std::int64_t>("n_head");
  a.kv_heads = a.heads;
  a.width = config.get<std::int64_t>("n_embd");
  a.hidden = config.get<std::int64_t>("n_inner", 4 * std::min(a.width, kMostHidden));
  a.context = config.get<std::int64_t>("n_positions");
  a.vocab = config.get<std::int64_t>("vocab_size");
  a.norm_epsilon = config.get<double>("layer_norm_epsilon", 1e-5);
  a.bias = config.get<bool>("lockstep_bias", true);
  config.expect<std::string>("activation_function", "gelu_new");
  config.expect<bool>("scale_attn_weights", true);
  config.expect<bool>("scale_attn_by_inverse_layer_idx", false);
  config.expect<bool>("add_cross_attention", false);
  config.expect<bool>("tie_word_embeddings", true);
  return a;
}

Architecture read_llama(const Reader& config, const json& object, const std::string& origin) {
  Architecture a;
  a.family = ModelFamily::kLlama;
  a.layers = config.get<std::int64_t>("num_hidden_layers");
  a.heads = config.get<std::int64_t>("num_attention_heads");
  a.kv_heads = config.get<std::int64_t>("num_key_value_heads", a.heads);
  a.width = config.get<std::int64_t>("hidden_size");
  a.hidden = config.get<std::int64_t>("intermediate_size");
  a.context = config.get<std::int64_t>("max_position_embeddings");
  a.vocab = config.get<std::int64_t>("vocab_size");
  a.tied = config.get<bool>("tie_word_embeddings", false);
  a.bias = false;
  a.norm_epsilon = config.get<double>("rms_norm_eps", 1e-6);
  a.rope_theta = config.get<double>("rope_theta", 10000.0);
  config.expect<std::string>("hidden_act", "silu");
  config.expect<bool>("attention_bias", false);
  config.expect<bool>("mlp_bias", false);
  if (a.heads > 0) {
    config.expect<std::int64_t>("head_dim", a.width / a.heads);
  }
  require(!object.contains("rope_scaling") || object.at("rope_scaling").is_null(),
          "{}: \"rope_scaling\" is {}, which is not supported", origin, object.value("rope_scaling", json()).dump());
  if (object.contains("rope_parameters") && object.at("rope_parameters").is_object()) {
    const Reader rope(object.at("rope_parameters"), origin);
    rope.expect<std::string>("rope_type", "default");
    a.rope_theta = rope.get<double>("rope_theta", a.rope_theta);
  }
  return a;
}

}  // namespace

Architecture architecture_of(const ModelConfig& model) {
  Architecture a;
  a.family = model.family;
  a.layers = model.layers;
  a.heads = model.heads;
  a.kv_heads = model.kv_heads;
  a.width = model.width;
  a.hidden = model.hidden;
  a.context = model.context;
  a.vocab = model.vocab;
  a.tied = model.tied;
  a.bias = model.family == ModelFamily::kGpt2 && model.bias;
  a.norm_epsilon = model.norm_eps;
  a.rope_theta = model.rope_theta;
  check(a, "model");
  return a;
}

std::string to_hf_config(const Architecture& a, const HfConfigFacts& facts) {
  json config;
  if (a.family == ModelFamily::kGpt2) {
    config = {{"architectures", {"GPT2LMHeadModel"}},
              {"model_type", "gpt2"},
              {"n_layer", a.layers},
              {"n_head", a.heads},
              {"n_embd", a.width},
              {"n_inner", a.hidden},
              {"n_positions", a.context},
              {"n_ctx", a.context},
              {"activation_function", "gelu_new"},
              {"layer_norm_epsilon", a.norm_epsilon},
              {"attn_pdrop", facts.dropout},
              {"embd_pdrop", facts.dropout},
              {"resid_pdrop", facts.dropout},
              {"tie_word_embeddings", true}};
    if (!a.bias) {
      config["lockstep_bias"] = false;
    }
  } else {
    config = {{"architectures", {"LlamaForCausalLM"}},
              {"model_type", "llama"},
              {"num_hidden_layers", a.layers},
              {"num_attention_heads", a.heads},
              {"num_key_value_heads", a.kv_heads},
              {"head_dim", a.head_dim()},
              {"hidden_size", a.width},
              {"intermediate_size", a.hidden},
              {"max_position_embeddings", a.context},
              {"rms_norm_eps", a.norm_epsilon},
              {"rope_theta", a.rope_theta},
              {"hidden_act", "silu"},
              {"attention_bias", false},
              {"mlp_bias", false},
              {"tie_word_embeddings", a.tied}};
  }
  config["vocab_size"] = a.vocab;
  config["torch_dtype"] = facts.dtype;
  const json end_of_text = facts.end_of_text >= 0 ? json(facts.end_of_text) : json();
  config["bos_token_id"] = end_of_text;
  config["eos_token_id"] = end_of_text;
  return config.dump(2) + "\n";
}

std::string to_hf_tokenizer_config(std::string_view end_of_text, std::int64_t context) {
  json config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                 {"clean_up_tokenization_spaces", false},
                 {"model_max_length", context}};
  if (!end_of_text.empty()) {
    config["bos_token"] = end_of_text;
    config["eos_token"] = end_of_text;
  }
  return config.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
}

ModelConfig with_shape_of(ModelConfig model, const Architecture& source, const std::string& folder) {
  const auto adopt = [&](const char* key, int& value, std::int64_t found) {
    require(value == 0 || value == found, "model.{} is {}, the weights in {} (model.from) have {}", key, value, folder,
            found);
    value = static_cast<int>(found);
  };
  adopt("layers", model.layers, source.layers);
  adopt("heads", model.heads, source.heads);
  adopt("kv_heads", model.kv_heads, source.kv_heads);
  adopt("width", model.width, source.width);
  adopt("hidden", model.hidden, source.hidden);
  adopt("vocab", model.vocab, source.vocab);
  adopt("context", model.context, source.context);
  model.family = source.family;
  model.tied = source.tied;
  model.bias = source.bias;
  model.norm_eps = source.norm_epsilon;
  model.rope_theta = source.rope_theta;
  return model;
}

Architecture from_hf_config(std::string_view text, const std::string& origin) {
  const json object = json::parse(text, nullptr, false);
  require(object.is_object(), "{}: not a JSON object", origin);
  const Reader config(object, origin);
  const auto type = config.get<std::string>("model_type");
  require(type == "gpt2" || type == "llama", "{}: \"model_type\" is \"{}\", only \"gpt2\" and \"llama\" are supported",
          origin, type);
  const Architecture architecture = type == "gpt2" ? read_gpt2(config) : read_llama(config, object, origin);
  check(architecture, origin);
  return architecture;
}

HfTextEnds text_ends_of_hf_config(std::string_view text, const std::string& origin) {
  const json object = json::parse(text, nullptr, false);
  require(object.is_object(), "{}: not a JSON object", origin);
  const std::int64_t vocab = Reader(object, origin).get<std::int64_t>("vocab_size");
  const auto ids_of = [&](const char* key) {
    const json found = object.value(key, json());
    std::vector<std::int32_t> ids;
    for (const json& id : found.is_array() ? found : json::array({found})) {
      require(id.is_number_integer() || found.is_null(), "{}: \"{}\" is {}, expected a token id or a list of them",
              origin, key, found.dump());
      if (id.is_number_integer() && id >= 0 && id < vocab) {
        ids.push_back(id.get<std::int32_t>());
      }
    }
    return ids;
  };
  HfTextEnds result;
  if (const auto beginnings = ids_of("bos_token_id"); !beginnings.empty()) {
    result.beginning = beginnings.front();
  }
  result.ends = ids_of("eos_token_id");
  return result;
}

double training_flop_per_token(const Architecture& architecture, double parameters, std::int64_t sequence) {
  return 6.0 * parameters + 12.0 * static_cast<double>(architecture.layers) * static_cast<double>(architecture.width) *
                                static_cast<double>(sequence);
}

}  // namespace lockstep
