#include "trainer/export_gguf.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <utility>

#include "base/error.h"
#include "data/text/gguf_vocab_write.h"
#include "trainer/gguf_tensors.h"

namespace lockstep {
namespace {

struct KindRow {
  GgufKind kind;
  std::string_view name;
  GgmlType type;            // of most matrices
  std::uint32_t file_type;  // llama.cpp's number
};
constexpr std::array kKinds = {
    KindRow{GgufKind::kF32, "f32", GgmlType::kF32, 0},     KindRow{GgufKind::kF16, "f16", GgmlType::kF16, 1},
    KindRow{GgufKind::kBF16, "bf16", GgmlType::kBF16, 32}, KindRow{GgufKind::kQ8_0, "q8_0", GgmlType::kQ8_0, 7},
    KindRow{GgufKind::kQ4_0, "q4_0", GgmlType::kQ4_0, 2},  KindRow{GgufKind::kQ4_K_M, "q4_k_m", GgmlType::kQ4_K, 15},
    KindRow{GgufKind::kQ6_K, "q6_k", GgmlType::kQ6_K, 18},
};
const KindRow& row_of(GgufKind kind) {
  return *std::ranges::find_if(kKinds, [&](const KindRow& row) { return row.kind == kind; });
}

bool is_quantised(GgufKind kind) { return kind != GgufKind::kF32 && kind != GgufKind::kF16 && kind != GgufKind::kBF16; }

// q4_k_m keeps the values and the way down of these layers better: the first and the last eighth, and each third
// between them.
bool is_kept_better(std::int64_t layer, std::int64_t layers) {
  return layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
}

std::int64_t layer_of(std::string_view name) {
  return name.starts_with("blk.") ? std::stoll(std::string(name.substr(4))) : -1;
}

struct Part {
  GgufPlace place;
  std::span<const float> values;  // empty: zeros
};

std::vector<Part> parts_of(const GgufSource& source) {
  const Architecture& a = source.architecture;
  std::vector<Part> parts;
  for (std::size_t p = 0; p < source.layout.size(); ++p) {
    const auto values = source.weights.subspan(source.layout.offset(p), source.layout.count(p));
    for (const ParameterExport& part : source.layout.specs()[p].exports) {
      parts.push_back({gguf_place_of(a, part.hf_name, part.shape),
                       values.subspan(static_cast<std::size_t>(part.offset_elements), *count_of(part.shape))});
    }
  }
  if (a.is_gpt2() && !a.bias) {  // which llama.cpp expects
    std::vector<Part> biases;
    for (const Part& part : parts) {
      const std::string& name = part.place.name;
      if (name.ends_with(".weight") && (name.starts_with("blk.") || name.starts_with("output_norm"))) {
        biases.push_back({{name.substr(0, name.size() - 6) + "bias", {part.place.shape.front()}}, {}});
      }
    }
    parts.insert(parts.end(), biases.begin(), biases.end());
  }
  return parts;
}

GgufMetadata metadata_of(const GgufSource& source, GgufKind kind) {
  const Architecture& a = source.architecture;
  const std::string architecture = a.family == ModelFamily::kMistral ? "llama" : std::string(name_of(a.family));
  GgufMetadata metadata;
  const auto number = [&](const char* key, std::int64_t value) {
    metadata.add(architecture + "." + key, static_cast<std::uint32_t>(value));
  };
  const auto real = [&](const char* key, double value) {
    metadata.add(architecture + "." + key, static_cast<float>(value));
  };
  metadata.add("general.architecture", architecture);
  metadata.add("general.type", "model");
  metadata.add("general.name", source.name);
  metadata.add("general.file_type", row_of(kind).file_type);
  if (is_quantised(kind)) {
    metadata.add("general.quantization_version", std::uint32_t{2});
  }
  number("vocab_size", a.vocab);
  number("context_length", a.context);
  number("embedding_length", a.width);
  number("block_count", a.layers);
  number("feed_forward_length", a.hidden);
  number("attention.head_count", a.heads);
  if (a.is_gpt2()) {
    real("attention.layer_norm_epsilon", a.norm_epsilon);
  } else {
    number("attention.head_count_kv", a.kv_heads);
    number("attention.key_length", a.head_dim);
    number("attention.value_length", a.head_dim);
    real("attention.layer_norm_rms_epsilon", a.norm_epsilon);
    number("rope.dimension_count", a.head_dim);
    real("rope.freq_base", a.rope_theta);
  }
  if (a.rope_scaling == RopeScaling::kLinear) {
    metadata.add(architecture + ".rope.scaling.type", "linear");
    real("rope.scaling.factor", a.rope_factor);
  }
  if (a.rope_scaling == RopeScaling::kLlama3) {
    metadata.add(kGgufRopeFactor, static_cast<float>(a.rope_factor));
    metadata.add(kGgufRopeLowFreqFactor, static_cast<float>(a.rope_low_freq_factor));
    metadata.add(kGgufRopeHighFreqFactor, static_cast<float>(a.rope_high_freq_factor));
    metadata.add(kGgufRopeOriginalContext, static_cast<std::uint32_t>(a.rope_original_context));
  }

  const GgufVocabulary vocabulary = gguf_vocabulary_of(source.tokenizer, a.vocab);
  metadata.add("tokenizer.ggml.model", vocabulary.model);
  metadata.add("tokenizer.ggml.pre", vocabulary.pre);
  metadata.add("tokenizer.ggml.tokens", vocabulary.tokens);
  metadata.add("tokenizer.ggml.token_type", vocabulary.types);
  if (vocabulary.model == "llama") {
    metadata.add("tokenizer.ggml.scores", vocabulary.scores);
    metadata.add("tokenizer.ggml.add_space_prefix", vocabulary.add_space_prefix);
    if (vocabulary.unknown) {
      metadata.add("tokenizer.ggml.unknown_token_id", *vocabulary.unknown);
    }
  } else {
    metadata.add("tokenizer.ggml.merges", vocabulary.merges);
  }
  const auto beginning = source.tokenizer.beginning_of_text();
  const auto end = source.ends.ends.empty() ? source.tokenizer.end_of_text()
                                            : std::optional(static_cast<std::uint32_t>(source.ends.ends.front()));
  if (end) {
    metadata.add("tokenizer.ggml.eos_token_id", *end);
    metadata.add("tokenizer.ggml.bos_token_id",
                 source.ends.beginning ? static_cast<std::uint32_t>(*source.ends.beginning) : beginning.value_or(*end));
  }
  metadata.add("tokenizer.ggml.add_bos_token", beginning.has_value());
  if (!source.chat_template.empty()) {
    metadata.add("tokenizer.chat_template", source.chat_template);
  }
  if (!source.template_name.empty()) {
    metadata.add(kGgufTemplateName, source.template_name);
  }
  return metadata;
}

}  // namespace

std::string_view name_of(GgufKind kind) { return row_of(kind).name; }

std::vector<std::string_view> gguf_kind_names() {
  std::vector<std::string_view> names;
  for (const KindRow& row : kKinds) {
    names.push_back(row.name);
  }
  return names;
}

GgufKind parse_gguf_kind(std::string_view name) {
  const auto* const found = std::ranges::find_if(kKinds, [&](const KindRow& row) { return row.name == name; });
  require(found != kKinds.end(), "--type is {}, expected {}", name, fmt::join(gguf_kind_names(), ", "));
  return found->kind;
}

GgmlType tensor_type(GgufKind kind, const GgufTensor& tensor, bool is_head, std::int64_t layers) {
  const std::string& name = tensor.name;
  if (tensor.shape.size() < 2 || name.starts_with("position_embd.")) {
    return GgmlType::kF32;
  }
  GgmlType type = row_of(kind).type;
  if (is_head && (kind == GgufKind::kQ4_0 || kind == GgufKind::kQ4_K_M)) {
    type = GgmlType::kQ6_K;
  }
  const bool is_delicate = name.find("attn_v.") != std::string::npos || name.find("ffn_down.") != std::string::npos;
  if (kind == GgufKind::kQ4_K_M && is_delicate && is_kept_better(layer_of(name), layers)) {
    type = GgmlType::kQ6_K;
  }
  const std::int64_t columns = tensor.shape.back();
  if (columns % block_values(type) != 0) {
    type = type == GgmlType::kQ4_K ? GgmlType::kQ5_0 : type == GgmlType::kQ6_K ? GgmlType::kQ8_0 : GgmlType::kF16;
  }
  return columns % block_values(type) == 0 ? type : GgmlType::kF16;
}

GgufSummary export_gguf(const GgufSource& source, GgufKind kind, const std::filesystem::path& path,
                        const std::function<void(std::size_t, std::size_t)>& progress) {
  const Architecture& a = source.architecture;
  std::vector<Part> parts = parts_of(source);
  std::vector<float> factors;
  if (a.rope_scaling == RopeScaling::kLlama3) {
    factors = rope_factors_of(a);
    parts.push_back({{kRopeFactorsName, {static_cast<std::int64_t>(factors.size())}}, factors});
  }
  GgufSummary summary;
  std::vector<GgufTensor> tensors;
  for (const Part& part : parts) {
    const std::string& name = part.place.name;
    const bool is_head = name.starts_with("output.") || (a.tied && name.starts_with("token_embd."));
    GgufTensor tensor{name, part.place.shape, GgmlType::kF32};
    GgufTensor unlimited = tensor;
    unlimited.shape.back() = 256;  // rows of which every type takes whole blocks
    tensor.type = tensor_type(kind, tensor, is_head, a.layers);
    if (tensor.type != tensor_type(kind, unlimited, is_head, a.layers)) {
      ++summary.fallbacks[name_of(tensor.type)];
    }
    tensors.push_back(std::move(tensor));
  }
  GgufWriter writer(path, metadata_of(source, kind), tensors);
  std::vector<float> values;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    values.assign(static_cast<std::size_t>(tensors[i].values()), 0.0F);
    if (!parts[i].values.empty()) {
      to_gguf_order(parts[i].place, parts[i].values, values);
    }
    writer.write(i, values);
    if (progress) {
      progress(i + 1, parts.size());
    }
  }
  writer.finish();
  summary.size_bytes = writer.size_bytes();
  summary.tensors = parts.size();
  return summary;
}

}  // namespace lockstep
