#include "trainer/model/architecture.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>

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

// The size of a head where it is not said; 0 where there is none, which check() refuses.
std::int64_t divided(std::int64_t width, std::int64_t heads) {
  return heads > 0 && width % heads == 0 ? width / heads : 0;
}

// "rope_parameters" of newer files; "rope_theta" and "rope_scaling", whose type is called "type" in the oldest ones.
void read_rope(const json& object, const std::string& origin, Architecture& a) {
  a.rope_theta = Reader(object, origin).get<double>("rope_theta", 10000.0);
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const json rope = object.value(key, json());
    if (rope.is_null()) {
      continue;
    }
    require(rope.is_object(), "{}: \"{}\" is {}, expected an object", origin, key, rope.dump());
    const Reader config(rope, origin);
    a.rope_theta = config.get<double>("rope_theta", a.rope_theta);
    const auto type = config.get<std::string>("rope_type", config.get<std::string>("type", "default"));
    require(type == "default" || type == "linear" || type == "llama3",
            "{}: \"{}\" has the type \"{}\", only \"default\", \"linear\" and \"llama3\" are supported", origin, key,
            type);
    if (type != "default") {
      a.rope_scaling = type == "linear" ? RopeScaling::kLinear : RopeScaling::kLlama3;
      a.rope_factor = config.get<double>("factor");
    }
    if (type == "llama3") {
      a.rope_low_freq_factor = config.get<double>("low_freq_factor");
      a.rope_high_freq_factor = config.get<double>("high_freq_factor");
      a.rope_original_context = config.get<std::int64_t>("original_max_position_embeddings");
    }
  }
}

Architecture read_gpt2(const Reader& config) {
  Architecture a;
  a.family = ModelFamily::kGpt2;
  a.layers = config.get<std::int64_t>("n_layer");
  a.heads = config.get<std::int64_t>("n_head");
  a.kv_heads = a.heads;
  a.width = config.get<std::int64_t>("n_embd");
  a.head_dim = divided(a.width, a.heads);
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

// What transformers takes for llama, mistral, qwen2 and qwen3 where a key is missing.
struct FamilyDefaults {
  std::int64_t kv_heads;  // 0: heads
  std::int64_t head_dim;  // 0: width / heads
};
FamilyDefaults defaults_of(ModelFamily family) {
  switch (family) {
    case ModelFamily::kMistral:
      return {8, 0};
    case ModelFamily::kQwen2:
      return {32, 0};
    case ModelFamily::kQwen3:
      return {32, 128};
    default:
      return {0, 0};
  }
}

Architecture read_llama(ModelFamily family, const json& object, const std::string& origin) {
  const Reader config(object, origin);
  const FamilyDefaults defaults = defaults_of(family);
  Architecture a;
  a.family = family;
  a.layers = config.get<std::int64_t>("num_hidden_layers");
  a.heads = config.get<std::int64_t>("num_attention_heads");
  a.kv_heads = config.get<std::int64_t>("num_key_value_heads", defaults.kv_heads == 0 ? a.heads : defaults.kv_heads);
  a.width = config.get<std::int64_t>("hidden_size");
  a.hidden = config.get<std::int64_t>("intermediate_size");
  a.context = config.get<std::int64_t>("max_position_embeddings");
  a.vocab = config.get<std::int64_t>("vocab_size");
  a.tied = config.get<bool>("tie_word_embeddings", false);
  a.bias = false;
  a.norm_epsilon = config.get<double>("rms_norm_eps", 1e-6);
  a.head_dim = config.get<std::int64_t>("head_dim", defaults.head_dim);
  if (a.head_dim == 0) {
    a.head_dim = divided(a.width, a.heads);
  }
  config.expect<std::string>("hidden_act", "silu");
  config.expect<bool>("mlp_bias", false);
  if (family != ModelFamily::kQwen2) {  // which has biases without saying so
    config.expect<bool>("attention_bias", false);
  }
  config.expect<bool>("use_sliding_window", false);
  if (family == ModelFamily::kMistral) {
    // Within the window its attention is that of llama.
    a.context = std::min(a.context, config.get<std::int64_t>("sliding_window", a.context));
  }
  read_rope(object, origin, a);
  return a;
}

const char* architecture_name(ModelFamily family) {
  switch (family) {
    case ModelFamily::kGpt2:
      return "GPT2LMHeadModel";
    case ModelFamily::kLlama:
      return "LlamaForCausalLM";
    case ModelFamily::kMistral:
      return "MistralForCausalLM";
    case ModelFamily::kQwen2:
      return "Qwen2ForCausalLM";
    case ModelFamily::kQwen3:
      return "Qwen3ForCausalLM";
  }
  return "";
}

}  // namespace

void check_architecture(const Architecture& a, const std::string& origin) {
  const auto in_range = [&](const char* name, std::int64_t value, std::int64_t most) {
    require(value > 0, "{}: {} is {}, expected a positive number", origin, name, value);
    require(value <= most, "{}: {} is {}, expected at most {}", origin, name, value, most);
  };
  in_range("layers", a.layers, kMostLayers);
  in_range("heads", a.heads, kMostHeads);
  in_range("kv_heads", a.kv_heads, kMostHeads);
  in_range("width", a.width, kMostWidth);
  require(a.head_dim != 0, "{}: width {} is not a multiple of {} heads", origin, a.width, a.heads);
  in_range("head_dim", a.head_dim, kMostHeads);
  in_range("hidden", a.hidden, kMostHidden);
  in_range("context", a.context, kMostTokens);
  in_range("vocab", a.vocab, kMostTokens);
  require(a.heads % a.kv_heads == 0, "{}: {} heads are not a multiple of {} kv_heads", origin, a.heads, a.kv_heads);
  require(!a.is_gpt2() || a.kv_heads == a.heads, "{}: gpt2 has no grouped queries: kv_heads {}, heads {}", origin,
          a.kv_heads, a.heads);
  require(!a.is_gpt2() || a.query_width() == a.width, "{}: {} heads of {} are not gpt2's width of {}", origin, a.heads,
          a.head_dim, a.width);
  require(!a.is_gpt2() || a.tied, "{}: gpt2's head is always tied to its embedding", origin);
  require(a.is_gpt2() || a.head_dim % 2 == 0, "{}: head size {} is odd, rotary positions need pairs", origin,
          a.head_dim);
  const auto is_positive = [&](const char* name, double value) {
    require(std::isfinite(value) && value > 0, "{}: {} is {}, expected a number above 0", origin, name, value);
  };
  is_positive("the norms' epsilon", a.norm_epsilon);
  if (!a.is_gpt2()) {
    is_positive("rope's base", a.rope_theta);
    is_positive("rope's factor", a.rope_factor);
  }
  const bool has_band = a.rope_low_freq_factor > 0 && a.rope_low_freq_factor < a.rope_high_freq_factor;
  require(a.rope_scaling == RopeScaling::kNone || a.rope_factor >= 1, "{}: a rope factor of {}, expected at least 1",
          origin, a.rope_factor);
  require(a.rope_scaling != RopeScaling::kLlama3 || has_band,
          "{}: rope's low and high frequency factors are {} and {}, expected the first to be positive and smaller",
          origin, a.rope_low_freq_factor, a.rope_high_freq_factor);
  require(a.rope_factors.empty() || 2 * static_cast<std::int64_t>(a.rope_factors.size()) == a.head_dim,
          "{}: {} rotary factors for heads of {}, expected {}", origin, a.rope_factors.size(), a.head_dim,
          a.head_dim / 2);
  require(std::ranges::all_of(a.rope_factors, [](float factor) { return factor > 0 && std::isfinite(factor); }),
          "{}: a rotary factor is not positive", origin);
  in_range("rope_original_context", a.rope_original_context, kMostTokens);
}

Architecture architecture_of(const ModelConfig& model) {
  Architecture a;
  a.family = model.family;
  a.layers = model.layers;
  a.heads = model.heads;
  a.kv_heads = model.kv_heads;
  a.width = model.width;
  a.head_dim = model.head_dim > 0 ? model.head_dim : divided(a.width, a.heads);
  a.hidden = model.hidden;
  a.context = model.context;
  a.vocab = model.vocab;
  a.tied = model.tied;
  a.bias = a.is_gpt2() && model.bias;
  a.norm_epsilon = model.norm_eps;
  a.rope_theta = model.rope_theta;
  a.rope_scaling = model.rope_scaling;
  a.rope_factor = model.rope_factor;
  a.rope_low_freq_factor = model.rope_low_freq_factor;
  a.rope_high_freq_factor = model.rope_high_freq_factor;
  a.rope_original_context = model.rope_original_context;
  check_architecture(a, "model");
  return a;
}

std::vector<float> inverse_frequencies(const Architecture& a) {
  const auto original_context = static_cast<double>(a.rope_original_context);
  const auto stretched = [&](double frequency) {
    if (a.rope_scaling == RopeScaling::kNone) {
      return frequency;
    }
    // How many waves the original context holds, as a place between the two factors.
    const double waves = original_context * frequency / (2.0 * std::numbers::pi);
    const double kept =
        a.rope_scaling == RopeScaling::kLinear
            ? 0.0
            : std::clamp((waves - a.rope_low_freq_factor) / (a.rope_high_freq_factor - a.rope_low_freq_factor), 0.0,
                         1.0);
    return (1.0 - kept) * frequency / a.rope_factor + kept * frequency;
  };
  std::vector<float> frequencies;
  for (std::int64_t i = 0; 2 * i < a.head_dim; ++i) {
    const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(a.head_dim);
    const double factor =
        a.rope_factors.empty() ? 1.0 : static_cast<double>(a.rope_factors[static_cast<std::size_t>(i)]);
    frequencies.push_back(static_cast<float>(stretched(std::pow(a.rope_theta, exponent)) / factor));
  }
  return frequencies;
}

std::string_view torch_name_of(DType dtype) {
  return dtype == DType::kF16 ? "float16" : dtype == DType::kBF16 ? "bfloat16" : "float32";
}

std::string to_hf_config(const Architecture& a, const HfConfigFacts& facts) {
  json config;
  if (a.is_gpt2()) {
    config = {{"n_layer", a.layers},
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
    config = {{"num_hidden_layers", a.layers},
              {"num_attention_heads", a.heads},
              {"num_key_value_heads", a.kv_heads},
              {"head_dim", a.head_dim},
              {"hidden_size", a.width},
              {"intermediate_size", a.hidden},
              {"max_position_embeddings", a.context},
              {"rms_norm_eps", a.norm_epsilon},
              {"rope_theta", a.rope_theta},
              {"hidden_act", "silu"},
              {"tie_word_embeddings", a.tied}};
    if (a.family == ModelFamily::kLlama || a.family == ModelFamily::kQwen3) {
      config["attention_bias"] = false;
    }
    if (a.family == ModelFamily::kLlama) {
      config["mlp_bias"] = false;
    }
    if (a.family == ModelFamily::kMistral) {
      config["sliding_window"] = nullptr;
    }
    if (a.rope_scaling != RopeScaling::kNone) {
      config["rope_scaling"] = {{"rope_type", std::string(name_of(a.rope_scaling))}, {"factor", a.rope_factor}};
    }
    if (a.rope_scaling == RopeScaling::kLlama3) {
      config["rope_scaling"].update({{"low_freq_factor", a.rope_low_freq_factor},
                                     {"high_freq_factor", a.rope_high_freq_factor},
                                     {"original_max_position_embeddings", a.rope_original_context}});
    }
  }
  config["architectures"] = {architecture_name(a.family)};
  config["model_type"] = std::string(name_of(a.family));
  config["vocab_size"] = a.vocab;
  config["torch_dtype"] = torch_name_of(facts.dtype);
  const json end_of_text = facts.end_of_text >= 0 ? json(facts.end_of_text) : json();
  config["bos_token_id"] = facts.beginning_of_text >= 0 ? json(facts.beginning_of_text) : end_of_text;
  config["eos_token_id"] = end_of_text;
  return config.dump(2) + "\n";
}

std::string to_hf_tokenizer_config(const HfTokenizerFacts& facts) {
  json config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                 {"clean_up_tokenization_spaces", false},
                 {"model_max_length", facts.context}};
  if (!facts.end_of_text.empty()) {
    config["bos_token"] = facts.beginning_of_text.empty() ? facts.end_of_text : facts.beginning_of_text;
    config["eos_token"] = facts.end_of_text;
  }
  if (!facts.chat_template.empty()) {
    config["chat_template"] = facts.chat_template;
    config[kTemplateNameKey] = facts.template_name;
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
  adopt("head_dim", model.head_dim, source.head_dim);
  adopt("hidden", model.hidden, source.hidden);
  adopt("vocab", model.vocab, source.vocab);
  adopt("context", model.context, source.context);
  model.family = source.family;
  model.tied = source.tied;
  model.bias = source.bias;
  model.norm_eps = source.norm_epsilon;
  model.rope_theta = source.rope_theta;
  model.rope_scaling = source.rope_scaling;
  model.rope_factor = source.rope_factor;
  model.rope_low_freq_factor = source.rope_low_freq_factor;
  model.rope_high_freq_factor = source.rope_high_freq_factor;
  model.rope_original_context = static_cast<int>(source.rope_original_context);
  return model;
}

Architecture from_hf_config(std::string_view text, const std::string& origin) {
  const json object = json::parse(text, nullptr, false);
  require(object.is_object(), "{}: not a JSON object", origin);
  const Reader config(object, origin);
  const auto type = config.get<std::string>("model_type");
  constexpr std::array kFamilies = {ModelFamily::kGpt2, ModelFamily::kLlama, ModelFamily::kMistral, ModelFamily::kQwen2,
                                    ModelFamily::kQwen3};
  const auto* const family = std::ranges::find_if(kFamilies, [&](ModelFamily known) { return name_of(known) == type; });
  require(family != kFamilies.end(),
          "{}: \"model_type\" is \"{}\", only gpt2, llama, mistral, qwen2 and qwen3 are supported", origin, type);
  const Architecture architecture =
      *family == ModelFamily::kGpt2 ? read_gpt2(config) : read_llama(*family, object, origin);
  check_architecture(architecture, origin);
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

}  // namespace lockstep
