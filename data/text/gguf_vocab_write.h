// A tokenizer as a GGUF file holds it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "data/text/tokenizer.h"

namespace lockstep {

// The values of the keys tokenizer.ggml.*.
struct GgufVocabulary {
  std::string model;  // "gpt2" or, for SentencePiece, "llama"
  std::string pre;
  std::vector<std::string> tokens;  // by id
  std::vector<std::int32_t> types;  // 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
  std::vector<std::string> merges;  // "left right"; of gpt2
  // Of llama. Without scores of its own a token has the place of its first merge, negative: those merge first that come
  // first in the list.
  std::vector<float> scores;
  bool add_space_prefix = false;
  std::optional<std::uint32_t> unknown;
};

// With unused tokens up to `size`, as many as the model's embedding has rows. Throws Error(kUnsupported) for a way of
// splitting text that llama.cpp has no name for.
[[nodiscard]] GgufVocabulary gguf_vocabulary_of(const Tokenizer& tokenizer, std::int64_t size);

}  // namespace lockstep
