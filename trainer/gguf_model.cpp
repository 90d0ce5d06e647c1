#include "trainer/gguf_model.h"

#include <algorithm>
#include <array>
#include <set>
#include <vector>

#include "base/error.h"
#include "trainer/formats/strict_json.h"
#include "trainer/gguf_tensors.h"

namespace lockstep {
namespace {

ModelFamily family_of(const std::string& architecture, const std::string& file) {
  constexpr std::array kFamilies = {ModelFamily::kGpt2, ModelFamily::kLlama, ModelFamily::kQwen2, ModelFamily::kQwen3};
  const auto* const found =
      std::ranges::find_if(kFamilies, [&](ModelFamily family) { return name_of(family) == architecture; });
  if (found == kFamilies.end()) {
    fail(ErrorCode::kUnsupported, "{}: general.architecture is {}, only gpt2, llama, qwen2 and qwen3 are supported",
         file, architecture.empty() ? "missing" : quoted_name(architecture));
  }
  return *found;
}

}  // namespace

GgufModel::GgufModel(const std::filesystem::path& path) : file_(path) {
  const std::string name = file_.text("general.architecture").value_or("");
  architecture_.family = family_of(name, path.string());
  prefix_ = name + ".";
  read_sizes();
  if (!architecture_.is_gpt2()) {
    read_rope();
  }
  check_architecture(architecture_, path.string());
  check_keys();
}

std::int64_t GgufModel::size(const char* key) const {
  const auto found = file_.number(prefix_ + key);
  if (!found) {
    fail(ErrorCode::kCorrupt, "{}: {}{} is missing", file_.path().string(), prefix_, key);
  }
  return *found;
}

std::int64_t GgufModel::size(const char* key, std::int64_t otherwise) const {
  return file_.number(prefix_ + key).value_or(otherwise);
}

double GgufModel::real(const char* key, double otherwise) const {
  return file_.real(prefix_ + key).value_or(otherwise);
}

void GgufModel::read_sizes() {
  Architecture& a = architecture_;
  const std::string file = file_.path().string();
  a.layers = size("block_count");
  a.heads = size("attention.head_count");
  a.kv_heads = size("attention.head_count_kv", a.heads);
  a.width = size("embedding_length");
  a.head_dim = size("attention.key_length", a.heads > 0 && a.width % a.heads == 0 ? a.width / a.heads : 0);
  a.hidden = size("feed_forward_length");
  a.context = size("context_length");
  if (const std::int64_t window = size("attention.sliding_window", 0); window > 0) {
    a.context = std::min(a.context, window);  // within it attention is that of llama
  }
  const GgufFileTensor* const table = file_.find("token_embd.weight");
  require(table != nullptr && table->shape.size() == 2, "load {}: tensor \"token_embd.weight\" is missing", file);
  a.vocab = table->shape.front();
  a.tied = file_.find("output.weight") == nullptr;
  a.bias = a.is_gpt2() && file_.find("output_norm.bias") != nullptr;
  a.norm_epsilon =
      a.is_gpt2() ? real("attention.layer_norm_epsilon", 1e-5) : real("attention.layer_norm_rms_epsilon", 1e-6);
}

void GgufModel::check_keys() const {
  const Architecture& a = architecture_;
  const auto only = [&](const char* key, std::int64_t expected) {
    if (const std::int64_t found = size(key, expected); found != expected) {
      fail(ErrorCode::kUnsupported, "{}: {}{} is {}, only {} is supported", file_.path().string(), prefix_, key, found,
           expected);
    }
  };
  only("vocab_size", a.vocab);
  only("attention.value_length", a.head_dim);
  only("rope.dimension_count", a.head_dim);
  only("expert_count", 0);
}

void GgufModel::read_rope() {
  Architecture& a = architecture_;
  a.rope_theta = real("rope.freq_base", 10000);
  const std::string type = file_.text(prefix_ + "rope.scaling.type").value_or("none");
  if (type == "linear") {
    a.rope_scaling = RopeScaling::kLinear;
    a.rope_factor = real("rope.scaling.factor", 1);
  } else if (type != "none") {
    fail(ErrorCode::kUnsupported, "{}: {}rope.scaling.type is {}, only none and linear are supported",
         file_.path().string(), prefix_, quoted_name(type));
  }
  read_rope_factors();
}

// The factors of the file decide. Where they are what the four numbers give that we write beside them, these are taken:
// then frequencies are computed as in the model that was exported, and not a rounding later.
void GgufModel::read_rope_factors() {
  const GgufFileTensor* const tensor = file_.find(kRopeFactorsName);
  if (tensor == nullptr) {
    return;
  }
  const auto pairs = static_cast<std::uint64_t>(std::max<std::int64_t>(architecture_.head_dim, 0)) / 2;
  require(tensor->count() == pairs, "load {}: tensor {} has {} values, expected {}", file_.path().string(),
          quoted_name(tensor->name), tensor->count(), pairs);
  std::vector<float> factors(tensor->count());
  file_.read(*tensor, factors);
  const auto factor = file_.real(kGgufRopeFactor);
  const auto low = file_.real(kGgufRopeLowFreqFactor);
  const auto high = file_.real(kGgufRopeHighFreqFactor);
  const auto original = file_.number(kGgufRopeOriginalContext);
  if (factor && low && high && original) {
    Architecture known = architecture_;
    known.rope_scaling = RopeScaling::kLlama3;
    known.rope_factor = *factor;
    known.rope_low_freq_factor = *low;
    known.rope_high_freq_factor = *high;
    known.rope_original_context = *original;
    check_architecture(known, file_.path().string());
    if (rope_factors_of(known) == factors) {
      architecture_ = known;
      return;
    }
  }
  architecture_.rope_factors = factors;
}

HfTextEnds GgufModel::text_ends() const {
  HfTextEnds result;
  for (const char* key : {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eos_token_id"}) {
    const auto id = file_.number(key);
    if (id && *id >= 0 && *id < architecture_.vocab) {
      result.ends.push_back(static_cast<std::int32_t>(*id));
    }
  }
  return result;
}

std::string GgufModel::template_name() const { return file_.text(kGgufTemplateName).value_or(""); }

std::string GgufModel::chat_template() const { return file_.text("tokenizer.chat_template").value_or(""); }

void GgufModel::check(const ParameterLayout& layout) const {
  const std::string file = file_.path().string();
  std::set<std::string, std::less<>> used = {kRopeFactorsName};
  for (const ParameterSpec& spec : layout.specs()) {
    for (const ParameterExport& part : spec.exports) {
      const GgufPlace place = gguf_place_of(architecture_, part.hf_name, part.shape);
      const GgufFileTensor* const tensor = file_.find(place.name);
      require(tensor != nullptr, "load {}: tensor {} is missing", file, quoted_name(place.name));
      require(tensor->shape == place.shape, "load {}: tensor {} has shape {}, expected {}", file,
              quoted_name(place.name), shape_text(tensor->shape), shape_text(place.shape));
      if (!tensor->type.readable) {
        fail(ErrorCode::kUnsupported, "load {}: tensor {} has the type {}, whose values cannot be read here", file,
             quoted_name(place.name), tensor->type.name);
      }
      used.insert(place.name);
    }
  }
  for (const GgufFileTensor& tensor : file_.tensors()) {
    require(used.contains(tensor.name), "load {}: nothing is known to do with tensor {}", file,
            quoted_name(tensor.name));
  }
}

void GgufModel::read(const ParameterSpec& spec, std::span<float> values) const {
  std::vector<float> ordered;
  for (const ParameterExport& part : spec.exports) {
    const GgufPlace place = gguf_place_of(architecture_, part.hf_name, part.shape);
    const GgufFileTensor& tensor = *file_.find(place.name);
    const auto own = values.subspan(static_cast<std::size_t>(part.offset_elements), tensor.count());
    if (place.order == GgufOrder::kAsIs) {
      file_.read(tensor, own);
      continue;
    }
    ordered.resize(tensor.count());
    file_.read(tensor, ordered);
    from_gguf_order(place, ordered, own);
  }
}

}  // namespace lockstep
