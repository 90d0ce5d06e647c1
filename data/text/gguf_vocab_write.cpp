#include "data/text/gguf_vocab_write.h"

#include <fmt/format.h>

#include "base/error.h"
#include "data/text/byte_alphabet.h"
#include "data/text/tokenizer_model.h"

namespace lockstep {
namespace {

enum GgufTokenType : std::int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

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

GgufTokenType type_of(const TokenizerDefinition& definition, std::size_t id) {
  if (definition.sentencepiece && definition.sentencepiece->unknown == id) {
    return kUnknown;
  }
  switch (definition.tokens[id].kind) {
    case TokenKind::kHole:
      return kUnused;
    case TokenKind::kSpecial:
      return kControl;
    case TokenKind::kAdded:
      return kUserDefined;
    case TokenKind::kByte:
      return kByte;
    default:
      return kNormal;
  }
}

std::string text_of(const TokenizerDefinition& definition, std::size_t id) {
  const Token& token = definition.tokens[id];
  if (!definition.sentencepiece) {
    return token.kind == TokenKind::kNormal ? to_characters(token.bytes) : token.bytes;
  }
  // llama.cpp looks for user-defined tokens in the text as it is.
  return token.kind == TokenKind::kAdded ? with_spaces(token.bytes) : piece_of_token(token);
}

std::vector<float> scores_of(const TokenizerDefinition& definition, std::size_t size) {
  std::vector<float> scores = definition.sentencepiece->scores;
  if (scores.empty()) {
    scores.assign(definition.tokens.size(), -static_cast<float>(definition.merges.size()) - 1.0F);
    for (std::size_t i = definition.merges.size(); i-- > 0;) {
      scores[definition.merges[i].result] = -static_cast<float>(i) - 1.0F;
    }
  }
  scores.resize(size, 0.0F);
  return scores;
}

}  // namespace

GgufVocabulary gguf_vocabulary_of(const Tokenizer& tokenizer, std::int64_t size) {
  const TokenizerDefinition& definition = tokenizer.model().definition;
  GgufVocabulary vocabulary;
  for (std::size_t id = 0; id < static_cast<std::size_t>(size); ++id) {
    const bool is_hole = id >= definition.tokens.size() || definition.tokens[id].kind == TokenKind::kHole;
    vocabulary.tokens.push_back(is_hole ? fmt::format("[PAD{}]", id) : text_of(definition, id));
    vocabulary.types.push_back(is_hole ? kUnused : type_of(definition, id));
  }
  if (const auto& form = definition.sentencepiece) {
    vocabulary.model = "llama";
    vocabulary.pre = "default";
    vocabulary.scores = scores_of(definition, static_cast<std::size_t>(size));
    vocabulary.add_space_prefix = form->prefix != PrefixSpace::kNone;
    vocabulary.unknown = form->unknown;
    return vocabulary;
  }
  vocabulary.model = "gpt2";
  vocabulary.pre = pre_of(definition);
  for (const MergeRule& merge : definition.merges) {
    vocabulary.merges.push_back(text_of(definition, merge.left) + " " + text_of(definition, merge.right));
  }
  return vocabulary;
}

}  // namespace lockstep
