#include "launcher/llama_factory/llama_factory.h"

#include <yaml-cpp/yaml.h>

#include <utility>

#include "base/error.h"
#include "launcher/llama_factory/keys.h"
#include "launcher/llama_factory/translation.h"

namespace lockstep {

bool is_llama_factory(std::string_view yaml) {
  try {
    const YAML::Node document = YAML::Load(std::string(yaml));
    return document.IsMap() && (document["model_name_or_path"] || document["finetuning_type"] || document["stage"]);
  } catch (const YAML::Exception&) {
    return false;
  }
}

LlamaFactoryJob read_llama_factory(std::string_view yaml, const std::string& origin, int world,
                                   const std::string& resume) {
  try {
    llama_factory::Keys keys(YAML::Load(std::string(yaml)), origin);
    return llama_factory::Translation(std::move(keys), world, resume).run();
  } catch (const YAML::Exception& error) {
    fail(ErrorCode::kUsage, "{}:{}: this is not YAML: {}", origin, error.mark.line + 1, error.msg);
  }
}

}  // namespace lockstep
