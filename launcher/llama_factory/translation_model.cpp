// The model that a LLaMA-Factory file trains.
#include <filesystem>

#include "base/error.h"
#include "base/file.h"
#include "launcher/llama_factory/translation.h"
#include "trainer/model/architecture.h"

namespace lockstep::llama_factory {

namespace fs = std::filesystem;

void Translation::take_model() {
  const auto model = keys_.find("model_name_or_path");
  require(model.has_value(), "{}: model_name_or_path is missing", origin());
  folder_ = *model;
  require(fs::is_regular_file(folder_ / "config.json"),
          "{}: model_name_or_path is {}, where no config.json is; expected a folder with a model (fetch it first)",
          origin(), *model);
  set("model_name_or_path", "model.from", *model);
  context_ = from_hf_config(read_file(folder_ / "config.json"), (folder_ / "config.json").string()).context;
  take_quantization();
  for (const char* key : {"adapter_name_or_path", "adapter_folder", "rope_scaling", "shift_attn", "mixture_of_depths",
                          "resize_vocab", "tokenized_path", "new_special_tokens", "add_tokens", "visual_inputs"}) {
    require(!keys_.find(key), "{}: {} is {}, which cannot be honoured", origin(), key, keys_.text(key, ""));
  }
}

void Translation::take_quantization() {
  const std::int64_t bits = keys_.whole("quantization_bit", 0);
  require(bits == 0 || bits == 4 || bits == 8, "{}: quantization_bit is {}, expected 4 or 8", origin(), bits);
  if (bits > 0) {
    set("quantization_bit", "tune.quantize", bits == 4 ? "nf4" : "q8_0");
  }
  keys_.refuse_unless("quantization_type", "nf4", "4 bits are nf4");
  const std::string method = keys_.text("quantization_method", "bnb");
  require(method == "bnb" || method == "bitsandbytes" || method == "BNB", "{}: quantization_method is {}, expected bnb",
          origin(), method);
  if (keys_.find("double_quantization")) {
    note("double_quantization: scales of nf4 stay in fp32 here, 4.5 bits a weight in all");
  }
}

}  // namespace lockstep::llama_factory
