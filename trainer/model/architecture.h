// What a decoder-only transformer is made of: the family's choices and the sizes, complete and checked.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/config.h"

namespace lockstep {

// gpt2:  learned positions, LayerNorm, GELU, weights as [in, out], biases            (Radford et al. 2019)
// llama: rotary positions, RMSNorm, SwiGLU, grouped queries, weights as [out, in]    (Touvron et al. 2023)
struct Architecture {
  ModelFamily family = ModelFamily::kGpt2;
  std::int64_t layers = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t width = 0;
  std::int64_t hidden = 0;  // of the feed-forward block
  std::int64_t context = 0;
  std::int64_t vocab = 0;
  bool tied = true;
  bool bias = true;  // gpt2
  double norm_epsilon = 1e-5;
  double rope_theta = 10000;

  [[nodiscard]] std::int64_t head_dim() const { return width / heads; }
  friend bool operator==(const Architecture&, const Architecture&) = default;
};

// From a resolved configuration. Throws Error(kUsage) when the sizes do not go together.
[[nodiscard]] Architecture architecture_of(const ModelConfig& model);

// Hugging Face's config.json, which transformers loads, and back. `origin` is what messages call the text;
// `end_of_text` is -1 when the tokenizer has none. Throws Error(kUsage) for a model type or an option that is not
// supported, naming it.
struct HfConfigFacts {
  std::int64_t end_of_text = -1;
  double dropout = 0;
  std::string_view dtype = "float32";  // of the weights beside it
};
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
// `end_of_text` is the token's text, empty when there is none.
[[nodiscard]] std::string to_hf_tokenizer_config(std::string_view end_of_text, std::int64_t context);

// For model.from: the sizes of `model` that are 0 and all that decides what the weights mean (family, tied, bias,
// norm_eps, rope_theta) become those of `source`. Throws Error(kUsage) naming a size that is given and differs;
// `folder` is what messages call the source.
[[nodiscard]] ModelConfig with_shape_of(ModelConfig model, const Architecture& source, const std::string& folder);

// Floating-point operations of a training step for one token: 6 x parameters + 12 x layers x width x sequence
// (Chowdhery et al. 2022, appendix B).
[[nodiscard]] double training_flop_per_token(const Architecture& architecture, double parameters,
                                             std::int64_t sequence);

}  // namespace lockstep
