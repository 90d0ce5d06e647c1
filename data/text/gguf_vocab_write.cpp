#include "data/text/gguf_vocab_write.h"

#include <fmt/format.h>

#include "base/error.h"
#include "data/text/byte_alphabet.h"
#include "data/text/tokenizer_model.h"

namespace lockstep {
namespace {

enum GgufTokenType : std::int32_t { kNormal = 1, kControl = 3, kUserDefined = 4, kUnused = 5 };

// llama.cpp's name for how text is split; the other way round than apply_pre() of gguf_vocab.cpp. One without steps has
// no merges either: any will do.
std::string pre_of(const TokenizerDefinition& definition) {
  const std::vector<SplitStep>& steps = definition.split_steps;
  const SplitStep gpt2 = step_of(KnownPattern::kGpt2);
  if ((steps.empty() && definition.merges.empty()) || steps == std::vector{gpt2}) {
    return "gpt-2";
  }
  if (steps == std::vector{step_of(KnownPattern::kLlama3)} && definition.ignore_merges) {
    return "llama-bpe";
  }
  if (steps == std::vector{step_of(KnownPattern::kQwen2)}) {
    return "qwen2";
  }
  if (steps.size() == 2 && steps.back() == gpt2 &&
      (steps.front().pattern == R"(\p{N})" || steps.front().pattern == R"(\p{Nd})")) {
    return "smollm";
  }
  fail(ErrorCode::kUnsupported, "the tokenizer {} splits text in a way that llama.cpp has no name for",
       definition.name);
}

}  // namespace

GgufVocabulary gguf_vocabulary_of(const Tokenizer& tokenizer, std::int64_t size) {
  const TokenizerDefinition& definition = tokenizer.model().definition;
  GgufVocabulary vocabulary;
  vocabulary.pre = pre_of(definition);
  const auto text_of = [&](std::size_t id) {
    const Token& token = definition.tokens[id];
    return token.kind == TokenKind::kNormal ? to_characters(token.bytes) : token.bytes;
  };
  for (std::size_t id = 0; id < static_cast<std::size_t>(size); ++id) {
    const TokenKind kind = id < definition.tokens.size() ? definition.tokens[id].kind : TokenKind::kHole;
    vocabulary.tokens.push_back(kind == TokenKind::kHole ? fmt::format("[PAD{}]", id) : text_of(id));
    vocabulary.types.push_back(kind == TokenKind::kHole      ? kUnused
                               : kind == TokenKind::kSpecial ? kControl
                               : kind == TokenKind::kAdded   ? kUserDefined
                                                             : kNormal);
  }
  for (const MergeRule& merge : definition.merges) {
    vocabulary.merges.push_back(text_of(merge.left) + " " + text_of(merge.right));
  }
  return vocabulary;
}

}  // namespace lockstep
