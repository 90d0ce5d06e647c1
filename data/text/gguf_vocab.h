// The vocabulary in a GGUF file's metadata (GGUF versions 2 and 3, little-endian). Tensors are not touched.
#pragma once

#include <string_view>

#include "base/file.h"
#include "data/text/tokenizer_model.h"

namespace lockstep {

// Reads the metadata as far as the file's keys go. Every length and count is checked against what is left of the file
// before memory is taken for it. The vocabulary has to be byte-level BPE (tokenizer.ggml.model "gpt2") with a
// tokenizer.ggml.pre that docs/tokenizers.md lists, or SentencePiece BPE ("llama"). Throws Error(kIo), Error(kCorrupt)
// naming file and place, Error(kUnsupported) naming what is not known.
[[nodiscard]] TokenizerDefinition read_gguf_vocabulary(const File& file);

// The same from memory; `name` begins the messages.
[[nodiscard]] TokenizerDefinition read_gguf_vocabulary(std::string_view bytes, std::string_view name);

}  // namespace lockstep
