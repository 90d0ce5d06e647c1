// A tokenizer as a GGUF file holds it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/text/tokenizer.h"

namespace lockstep {

// The values of tokenizer.ggml.pre, tokens, token_type and merges.
struct GgufVocabulary {
  std::string pre;
  std::vector<std::string> tokens;  // by id
  std::vector<std::int32_t> types;  // 1 normal, 3 control, 4 user-defined, 5 unused
  std::vector<std::string> merges;  // "left right"
};

// With unused tokens up to `size`, as many as the model's embedding has rows. Throws Error(kUnsupported) for a way of
// splitting text that llama.cpp has no name for.
[[nodiscard]] GgufVocabulary gguf_vocabulary_of(const Tokenizer& tokenizer, std::int64_t size);

}  // namespace lockstep
