// Reading and writing Hugging Face's tokenizer.json, as far as it is byte-level or SentencePiece BPE.
// docs/tokenizers.md lists what is known.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "data/text/tokenizer_model.h"

namespace lockstep {

// No file is larger; the largest in use are some 20 MB.
inline constexpr std::size_t kMaxTokenizerJsonBytes = std::size_t{256} << 20;

// Throws Error(kCorrupt) for what is not a tokenizer.json or contradicts itself, Error(kUnsupported) naming a component
// that is not known; both begin with `name`.
[[nodiscard]] TokenizerDefinition read_tokenizer_json(std::string_view text, std::string_view name);

// Adds what the tokenizer_config.json beside a SentencePiece model says: the tokens of added_tokens_decoder, and
// add_bos_token. Throws as read_tokenizer_json() does.
void add_tokenizer_config(std::string_view text, std::string_view name, TokenizerDefinition& definition);

[[nodiscard]] std::string write_tokenizer_json(const TokenizerDefinition& definition);

}  // namespace lockstep
