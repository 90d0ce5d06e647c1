// Reading a SentencePiece model (tokenizer.model), a protobuf message of the type ModelProto of
// src/sentencepiece_model.proto in github.com/google/sentencepiece. docs/tokenizers.md lists the fields.
#pragma once

#include <string_view>

#include "data/text/tokenizer_model.h"

namespace lockstep {

// Throws Error(kCorrupt) for what is not such a message or contradicts itself, Error(kUnsupported) naming another model
// type than BPE or a normalisation; both begin with `name`. What a text begins with is the model's bos_piece.
[[nodiscard]] TokenizerDefinition read_sentencepiece_model(std::string_view bytes, std::string_view name);

}  // namespace lockstep
