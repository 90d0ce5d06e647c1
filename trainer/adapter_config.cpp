#include "trainer/adapter_config.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <vector>

#include "base/error.h"
#include "trainer/model/parameters.h"

namespace lockstep {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

// A list of names, or the one name that peft writes when it was given one.
std::string joined(const json& value, const std::string& origin, const char* key) {
  if (value.is_null()) {
    return {};
  }
  if (value.is_string()) {
    const auto text = value.get<std::string>();
    require(text.find_first_of("|*.()[]^$+?\\") == std::string::npos,
            "{}: {} is the pattern {}; expected a list of names", origin, key, text);
    return text == "all-linear" ? "all" : text;
  }
  std::string text;
  require(value.is_array(), "{}: {} is {}, expected a list of names", origin, key, value.dump());
  for (const json& name : value) {
    require(name.is_string(), "{}: {} holds {}, expected names", origin, key, name.dump());
    text += text.empty() ? "" : ",";
    text += name.get<std::string>();
  }
  return text;
}

template <typename T>
T value_of(const json& object, const char* key, T otherwise, const std::string& origin) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) {
    return otherwise;
  }
  try {
    return found->get<T>();
  } catch (const json::exception&) {
    fail(ErrorCode::kUsage, "{}: {} is {}", origin, key, found->dump());
  }
}

// What would change the arithmetic in a way that is not known here.
void refuse_what_is_unknown(const json& object, const std::string& origin) {
  const auto is_idle = [](const json& value) {
    return value.is_null() || value == false || value == "" || value.empty() || value == 0;
  };
  for (const char* key : {"rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern", "exclude_modules",
                          "target_parameters", "trainable_token_indices", "layer_replication", "lora_bias",
                          "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config",
                          "monteclora_config", "velora_config", "megatron_config"}) {
    const auto found = object.find(key);
    if (found != object.end()) {
      require(is_idle(*found), "{}: {} is {}, which is not supported", origin, key, found->dump());
    }
  }
  // The others (pissa, olora, loftq, ...) change the base model's weights as well.
  const json init = object.value("init_lora_weights", json(true));
  require(init.is_boolean() || init == "gaussian" || init == "eva" || init == "orthogonal",
          "{}: init_lora_weights is {}, which changes the base model; expected true, gaussian, eva or orthogonal",
          origin, init.dump());
}

}  // namespace

bool trains_shared_table(const Architecture& architecture, const TuneConfig& tune) {
  if (!architecture.tied || tune.method != TuneMethod::kLora) {
    return false;
  }
  const ModelParameters parameters = make_parameters(architecture, tune);
  return parameters.places[static_cast<std::size_t>(parameters.token_table)].trained;
}

std::string to_adapter_config(const TuneConfig& tune, const Architecture& architecture, const std::string& base) {
  const std::vector<std::string> targets =
      tune.targets == "all" ? linear_layers_of(architecture) : names_in(tune.targets);
  const std::vector<std::string> whole = names_in(tune.also_train);
  const ordered_json config = {{"alpha_pattern", json::object()},
                               {"base_model_name_or_path", base},
                               {"bias", name_of(tune.bias)},
                               {"ensure_weight_tying", trains_shared_table(architecture, tune)},
                               {"fan_in_fan_out", architecture.is_gpt2()},
                               {"inference_mode", true},
                               {"init_lora_weights", true},
                               {"lora_alpha", tune.alpha},
                               {"lora_dropout", tune.dropout},
                               {"modules_to_save", whole.empty() ? json() : json(whole)},
                               {"peft_type", "LORA"},
                               {"r", tune.rank},
                               {"rank_pattern", json::object()},
                               {"target_modules", targets},
                               {"task_type", "CAUSAL_LM"},
                               {"use_dora", tune.dora},
                               {"use_rslora", tune.rslora}};
  return config.dump(2) + "\n";
}

AdapterConfig from_adapter_config(std::string_view text, const std::string& origin) {
  const json object = json::parse(text, nullptr, false);
  require(object.is_object(), "{}: expected a JSON object", origin);
  const auto type = value_of<std::string>(object, "peft_type", "", origin);
  require(type == "LORA", "{}: peft_type is {}, expected LORA", origin, type.empty() ? "missing" : type);
  refuse_what_is_unknown(object, origin);
  AdapterConfig adapter;
  adapter.base = value_of<std::string>(object, "base_model_name_or_path", "", origin);
  adapter.ties_weights = value_of(object, "ensure_weight_tying", false, origin);
  TuneConfig& tune = adapter.tune;
  tune.method = TuneMethod::kLora;
  tune.rank = value_of(object, "r", 8, origin);
  require(tune.rank >= 1, "{}: r is {}, expected at least 1", origin, tune.rank);
  tune.alpha = value_of(object, "lora_alpha", 8.0, origin);
  require(tune.alpha > 0, "{}: lora_alpha is {}, expected more than 0", origin, tune.alpha);
  tune.dropout = value_of(object, "lora_dropout", 0.0, origin);
  tune.rslora = value_of(object, "use_rslora", false, origin);
  tune.dora = value_of(object, "use_dora", false, origin);
  tune.targets = joined(object.value("target_modules", json()), origin, "target_modules");
  require(!tune.targets.empty(), "{}: target_modules names no layers", origin);
  tune.also_train = joined(object.value("modules_to_save", json()), origin, "modules_to_save");
  const auto bias = value_of<std::string>(object, "bias", "none", origin);
  require(bias == "none" || bias == "all" || bias == "lora_only", "{}: bias is {}, expected none, all or lora_only",
          origin, bias);
  tune.bias = bias == "all" ? TuneBias::kAll : bias == "lora_only" ? TuneBias::kLoraOnly : TuneBias::kNone;
  return adapter;
}

}  // namespace lockstep
