#include "trainer/export_gguf.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "data/text/gguf_vocab_write.h"

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

// How a tensor's values come from those of the layout.
enum class Order : std::uint8_t {
  kAsIs,
  kTransposed,  // gpt2's [in, out]
  kPairs,       // llama's queries and keys: rows i and i + head_dim / 2 of a head side by side
};

struct Part {
  GgufTensor tensor;
  Order order = Order::kAsIs;
  std::span<const float> values;  // empty: zeros
  std::int64_t heads = 0;         // kPairs
};

// "blk.3.attn_q.weight" of "model.layers.3.self_attn.q_proj.weight".
std::string gguf_name(const std::string& hf_name) {
  static const std::array<std::pair<std::string_view, std::string_view>, 23> kNames = {{
      {"transformer.wte.", "token_embd."},
      {"transformer.wpe.", "position_embd."},
      {"transformer.ln_f.", "output_norm."},
      {"ln_1.", "attn_norm."},
      {"attn.c_attn.", "attn_qkv."},
      {"attn.c_proj.", "attn_output."},
      {"ln_2.", "ffn_norm."},
      {"mlp.c_fc.", "ffn_up."},
      {"mlp.c_proj.", "ffn_down."},
      {"model.embed_tokens.", "token_embd."},
      {"model.norm.", "output_norm."},
      {"lm_head.", "output."},
      {"input_layernorm.", "attn_norm."},
      {"self_attn.q_proj.", "attn_q."},
      {"self_attn.k_proj.", "attn_k."},
      {"self_attn.v_proj.", "attn_v."},
      {"self_attn.o_proj.", "attn_output."},
      {"self_attn.q_norm.", "attn_q_norm."},
      {"self_attn.k_norm.", "attn_k_norm."},
      {"post_attention_layernorm.", "ffn_norm."},
      {"mlp.gate_proj.", "ffn_gate."},
      {"mlp.up_proj.", "ffn_up."},
      {"mlp.down_proj.", "ffn_down."},
  }};
  std::string_view rest = hf_name;
  std::string prefix;
  for (const std::string_view blocks : {"transformer.h.", "model.layers."}) {
    if (rest.starts_with(blocks)) {
      rest.remove_prefix(blocks.size());
      const std::size_t dot = rest.find('.');
      prefix = fmt::format("blk.{}.", rest.substr(0, dot));
      rest.remove_prefix(dot + 1);
    }
  }
  for (const auto& [from, to] : kNames) {
    if (rest.starts_with(from)) {
      return fmt::format("{}{}{}", prefix, to, rest.substr(from.size()));
    }
  }
  fail(ErrorCode::kUnsupported, "export: tensor {} has no place in a GGUF file", hf_name);
}

// Whether llama.cpp takes the family's rotary pairs side by side.
bool has_pairs_side_by_side(const Architecture& a) {
  return a.family == ModelFamily::kLlama || a.family == ModelFamily::kMistral;
}

Part part_of(const Architecture& a, const std::string& hf_name, std::vector<std::int64_t> shape,
             std::span<const float> values) {
  Part part{{gguf_name(hf_name), std::move(shape), GgmlType::kF32}, Order::kAsIs, values, 0};
  const std::string& name = part.tensor.name;
  if (a.is_gpt2() && part.tensor.shape.size() == 2 && name.starts_with("blk.")) {
    part.order = Order::kTransposed;
    std::swap(part.tensor.shape[0], part.tensor.shape[1]);
  }
  const bool is_query = name.find("attn_q.") != std::string::npos;
  if (has_pairs_side_by_side(a) && (is_query || name.find("attn_k.") != std::string::npos)) {
    part.order = Order::kPairs;
    part.heads = is_query ? a.heads : a.kv_heads;
  }
  return part;
}

std::vector<Part> parts_of(const GgufSource& source) {
  const Architecture& a = source.architecture;
  std::vector<Part> parts;
  for (std::size_t p = 0; p < source.layout.size(); ++p) {
    const ParameterSpec& spec = source.layout.specs()[p];
    const auto values = source.weights.subspan(source.layout.offset(p), source.layout.count(p));
    if (spec.exports.empty()) {
      parts.push_back(part_of(a, spec.name, spec.shape, values));
    }
    for (const ParameterExport& part : spec.exports) {
      parts.push_back(part_of(a, part.hf_name, part.shape,
                              values.subspan(static_cast<std::size_t>(part.offset_elements), *count_of(part.shape))));
    }
  }
  if (a.is_gpt2() && !a.bias) {  // which llama.cpp expects
    std::vector<Part> biases;
    for (const Part& part : parts) {
      const std::string& name = part.tensor.name;
      if (name.ends_with(".weight") && (name.starts_with("blk.") || name.starts_with("output_norm"))) {
        const std::int64_t size = part.tensor.shape.front();
        biases.push_back({{name.substr(0, name.size() - 6) + "bias", {size}, GgmlType::kF32}, Order::kAsIs, {}, 0});
      }
    }
    parts.insert(parts.end(), biases.begin(), biases.end());
  }
  return parts;
}

// By how much each frequency is divided.
std::vector<float> rope_factors(const Architecture& a) {
  Architecture plain = a;
  plain.rope_scaling = RopeScaling::kNone;
  const std::vector<float> before = inverse_frequencies(plain);
  const std::vector<float> after = inverse_frequencies(a);
  std::vector<float> factors;
  for (std::size_t i = 0; i < before.size(); ++i) {
    factors.push_back(before[i] / after[i]);
  }
  return factors;
}

void fill(const Part& part, std::vector<float>& values) {
  const std::vector<std::int64_t>& shape = part.tensor.shape;
  values.assign(static_cast<std::size_t>(part.tensor.values()), 0.0F);
  if (part.values.empty()) {
    return;
  }
  const auto columns = static_cast<std::size_t>(shape.back());
  const auto rows = static_cast<std::size_t>(part.tensor.values()) / columns;
  const std::size_t head = part.order == Order::kPairs ? rows / static_cast<std::size_t>(part.heads) : 0;
  for (std::size_t r = 0; r < rows; ++r) {
    if (part.order == Order::kTransposed) {
      for (std::size_t c = 0; c < columns; ++c) {
        values[r * columns + c] = part.values[c * rows + r];
      }
      continue;
    }
    // Row 2 i + j of a head is row i + j * head / 2 of before.
    const std::size_t from = head == 0 ? r : r / head * head + r % head / 2 + r % 2 * (head / 2);
    std::copy_n(part.values.begin() + static_cast<std::ptrdiff_t>(from * columns), columns,
                values.begin() + static_cast<std::ptrdiff_t>(r * columns));
  }
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
    factors = rope_factors(a);
    parts.push_back(
        {{"rope_freqs.weight", {static_cast<std::int64_t>(factors.size())}, GgmlType::kF32}, Order::kAsIs, factors, 0});
  }
  GgufSummary summary;
  std::vector<GgufTensor> tensors;
  for (Part& part : parts) {
    const std::string& name = part.tensor.name;
    const bool is_head = name.starts_with("output.") || (a.tied && name.starts_with("token_embd."));
    GgufTensor unlimited = part.tensor;
    unlimited.shape.back() = 256;  // rows of which every type takes whole blocks
    part.tensor.type = tensor_type(kind, part.tensor, is_head, a.layers);
    if (part.tensor.type != tensor_type(kind, unlimited, is_head, a.layers)) {
      ++summary.fallbacks[name_of(part.tensor.type)];
    }
    tensors.push_back(part.tensor);
  }
  GgufWriter writer(path, metadata_of(source, kind), tensors);
  std::vector<float> values;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    fill(parts[i], values);
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
