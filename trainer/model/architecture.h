// What a decoder-only transformer is made of: the family's choices and the sizes, complete and checked.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/config.h"

namespace lockstep {

// gpt2:    learned positions, LayerNorm, GELU, weights as [in, out], biases            (Radford et al. 2019)
// llama:   rotary positions, RMSNorm, SwiGLU, grouped queries, weights as [out, in]    (Touvron et al. 2023)
// mistral: as llama, within its sliding window                                         (Jiang et al. 2023)
// qwen2:   as llama, with biases on queries, keys and values                           (Yang et al. 2024)
// qwen3:   as llama, with an RMSNorm on each head of queries and keys                  (Yang et al. 2025)
struct Architecture {
  ModelFamily family = ModelFamily::kGpt2;
  std::int64_t layers = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t width = 0;
  std::int64_t hidden = 0;  // of the feed-forward block
  std::int64_t context = 0;
  std::int64_t vocab = 0;
  bool tied = true;
  bool bias = true;  // gpt2
  double norm_epsilon = 1e-5;
  double rope_theta = 10000;
  RopeScaling rope_scaling = RopeScaling::kNone;
  double rope_factor = 1;
  double rope_low_freq_factor = 1;
  double rope_high_freq_factor = 4;
  std::int64_t rope_original_context = 8192;
  // Of models in GGUF files, beside rope_scaling: what the frequency of each pair of a head is divided by, [head_dim /
  // 2]; empty: 1.
  std::vector<float> rope_factors = {};

  [[nodiscard]] bool is_gpt2() const { return family == ModelFamily::kGpt2; }
  // Of what attention reads, side by side, and of what it gives.
  [[nodiscard]] std::int64_t query_width() const { return heads * head_dim; }
  [[nodiscard]] std::int64_t kv_width() const { return kv_heads * head_dim; }
  [[nodiscard]] bool has_qkv_bias() const { return family == ModelFamily::kQwen2 || (is_gpt2() && bias); }
  [[nodiscard]] bool has_head_norm() const { return family == ModelFamily::kQwen3; }
  friend bool operator==(const Architecture&, const Architecture&) = default;
};

// Throws Error(kUsage) naming `origin` when the sizes do not go together, or are beyond what the configuration allows.
void check_architecture(const Architecture& architecture, const std::string& origin);

// From a resolved configuration. Throws Error(kUsage) when the sizes do not go together.
[[nodiscard]] Architecture architecture_of(const ModelConfig& model);

// Of the pairs of a head, [head_dim / 2]: theta^(-2 i / head_dim), stretched as rope_scaling and rope_factors say.
// llama3: wavelengths beyond rope_original_context / rope_low_freq_factor by rope_factor, those below
// rope_original_context / rope_high_freq_factor not at all, and between the two evenly (Grattafiori et al. 2024, as
// transformers computes it).
[[nodiscard]] std::vector<float> inverse_frequencies(const Architecture& architecture);

// Hugging Face's config.json, which transformers loads, and back. `origin` is what messages call the text;
// `end_of_text` is -1 when the tokenizer has none. Throws Error(kUsage) for a model type or an option that is not
// supported, naming it.
struct HfConfigFacts {
  std::int64_t end_of_text = -1;
  std::int64_t beginning_of_text = -1;  // -1: end_of_text stands there
  double dropout = 0;
  DType dtype = DType::kF32;  // of the weights beside it
};
// "bfloat16": what PyTorch calls f32, bf16 and f16.
[[nodiscard]] std::string_view torch_name_of(DType dtype);
[[nodiscard]] std::string to_hf_config(const Architecture& architecture, const HfConfigFacts& facts);
[[nodiscard]] Architecture from_hf_config(std::string_view json, const std::string& origin);

// The tokens that config.json names: bos_token_id (the first where there are several), and eos_token_id, a number or a
// list. Ids outside the vocabulary are left out: no text has them. Throws Error(kUsage) for anything but ids.
struct HfTextEnds {
  std::optional<std::int32_t> beginning;
  std::vector<std::int32_t> ends;
};
[[nodiscard]] HfTextEnds text_ends_of_hf_config(std::string_view json, const std::string& origin);

// tokenizer_config.json beside a tokenizer.json: transformers then takes that as it is, whatever the model's family.
struct HfTokenizerFacts {
  std::string_view end_of_text;        // the token's text, empty when there is none
  std::string_view beginning_of_text;  // likewise; empty: end_of_text stands there
  std::string_view chat_template;      // Jinja, empty: none
  std::string_view template_name;      // ChatTemplate::name(), for kTemplateNameKey
  std::int64_t context = 0;
};
inline constexpr const char* kTemplateNameKey = "lockstep_chat_template";
[[nodiscard]] std::string to_hf_tokenizer_config(const HfTokenizerFacts& facts);

// For model.from: the sizes of `model` that are 0 and all that decides what the weights mean (family, tied, bias,
// norm_eps, rope_*) become those of `source`. Throws Error(kUsage) naming a size that is given and differs;
// `folder` is what messages call the source.
[[nodiscard]] ModelConfig with_shape_of(ModelConfig model, const Architecture& source, const std::string& folder);

}  // namespace lockstep
