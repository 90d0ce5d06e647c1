// The parts of a tokenizer.json that say how SentencePiece BPE treats spaces, read and written. For tokenizer_json.cpp
// and tokenizer_json_write.cpp.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "data/text/sentencepiece.h"

namespace lockstep {

class JsonField;

// Whether the document is of this kind: a pre-tokenizer Metaspace, or a normaliser Prepend or Replace.
[[nodiscard]] bool is_sentencepiece(const JsonField& root);

// All but `unknown` and `scores`, which need the vocabulary. Throws Error(kUnsupported) naming a component that is not
// known.
[[nodiscard]] SentencePieceForm read_sentencepiece_form(const JsonField& root);

[[nodiscard]] nlohmann::ordered_json normalizer_of(const SentencePieceForm& form);
[[nodiscard]] nlohmann::ordered_json pre_tokenizer_of(const SentencePieceForm& form);
[[nodiscard]] nlohmann::ordered_json decoder_of(const SentencePieceForm& form);

}  // namespace lockstep
