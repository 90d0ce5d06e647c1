#include "data/text/tokenizer_model.h"

#include <algorithm>

#include "base/error.h"
#include "base/hash.h"
#include "data/text/byte_alphabet.h"
#include "data/text/unicode.h"

namespace lockstep {
namespace {

bool is_added(TokenKind kind) { return kind == TokenKind::kAdded || kind == TokenKind::kSpecial; }

// Feeds values to a hash so that different sequences of values never give the same bytes.
class Canonical {
 public:
  void add(std::uint64_t value) {
    std::array<char, 8> bytes{};
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      bytes[i] = static_cast<char>(static_cast<unsigned char>(value >> (8 * i)));
    }
    text_.append(bytes.data(), bytes.size());
  }
  void add(std::string_view text) {
    add(std::uint64_t{text.size()});
    text_.append(text);
  }
  [[nodiscard]] std::string hex() const { return hash_of(text_).hex(); }

 private:
  std::string text_;
};

// Ranks of merges, by place: equal scores rank equally.
std::vector<std::uint32_t> ranks_of(const TokenizerDefinition& definition) {
  const bool is_scored = definition.sentencepiece && !definition.sentencepiece->scores.empty();
  std::vector<std::uint32_t> ranks(definition.merges.size());
  for (std::size_t i = 1; i < ranks.size(); ++i) {
    const bool is_equal = is_scored && definition.sentencepiece->scores[definition.merges[i].result] ==
                                           definition.sentencepiece->scores[definition.merges[i - 1].result];
    ranks[i] = ranks[i - 1] + (is_equal ? 0 : 1);
  }
  return ranks;
}

void add_form(const TokenizerDefinition& definition, Canonical& all) {
  const SentencePieceForm& form = *definition.sentencepiece;
  all.add("SentencePiece");
  all.add(static_cast<std::uint64_t>(form.prefix));
  for (const bool flag : {form.prefix_before_space, form.normalizes_first, form.splits_words, form.drops_prefix,
                          form.byte_fallback, form.fuses_unknown, !form.scores.empty()}) {
    all.add(std::uint64_t{flag});
  }
  all.add(std::uint64_t{form.unknown.value_or(kMaxVocabSize)});
  for (const std::uint32_t rank : ranks_of(definition)) {
    all.add(std::uint64_t{rank});
  }
}

// Over what decides ids and their bytes, and nothing else: the form of the file, its name and which token ends a text
// do not count.
std::string fingerprint_of(const TokenizerDefinition& definition) {
  Canonical all;
  all.add("lockstep tokenizer 1");
  all.add(definition.tokens.size());
  for (const Token& token : definition.tokens) {
    all.add(static_cast<std::uint64_t>(token.kind));
    all.add(std::uint64_t{token.normalized});
    all.add(token.bytes);
  }
  all.add(definition.merges.size());
  for (const MergeRule& merge : definition.merges) {
    all.add(std::uint64_t{merge.left} << 32 | merge.right);
    all.add(merge.result);
  }
  all.add(definition.split_steps.size());
  for (const SplitStep& step : definition.split_steps) {
    all.add(step.pattern);
    all.add(std::uint64_t{step.literal} << 1 | std::uint64_t{step.invert});
    all.add(static_cast<std::uint64_t>(step.behavior));
  }
  all.add(std::uint64_t{definition.nfc} << 1 | std::uint64_t{definition.ignore_merges});
  if (definition.sentencepiece) {
    add_form(definition, all);
  }
  return all.hex();
}

// Without a normalisation, looking for some added tokens before it and for others after it are two passes over the same
// text; when all are of one kind, one pass does.
TokenizerDefinition with_one_pass(TokenizerDefinition definition) {
  const auto looked_for = [&](bool normalized) {
    return std::any_of(definition.tokens.begin(), definition.tokens.end(),
                       [&](const Token& token) { return is_added(token.kind) && token.normalized == normalized; });
  };
  const bool normalizes = definition.nfc || (definition.sentencepiece && definition.sentencepiece->normalizes_first);
  if (!normalizes && !looked_for(false)) {
    for (Token& token : definition.tokens) {
      token.normalized = false;
    }
  }
  return definition;
}

// What is looked for, in the text that it is looked for in; empty for what no such text has.
std::string pattern_of(const TokenizerDefinition& definition, const Token& token) {
  if (!token.normalized || !definition.sentencepiece || !definition.sentencepiece->normalizes_first) {
    return token.bytes;
  }
  const SentencePieceForm& form = *definition.sentencepiece;
  if (!form.scores.empty()) {
    return token.bytes.find(' ') == std::string::npos ? with_spaces(token.bytes) : std::string();
  }
  // `tokenizers` normalises the token as it does a text.
  return (form.prefix == PrefixSpace::kNone ? "" : " ") + with_spaces(token.bytes);
}

bool has_inner_break(std::string_view text) {
  for (std::size_t i = 1; i < text.size(); ++i) {
    if ((text[i] == ' ' || text[i] == '\n') && text[i - 1] != ' ' && text[i - 1] != '\n') {
      return true;
    }
  }
  return false;
}

void fill_byte_ids(const TokenizerDefinition& definition, const SentencePieceTables& pieces,
                   std::array<std::uint32_t, 256>& byte_ids) {
  for (std::uint32_t id = 0; id < definition.tokens.size(); ++id) {
    if (definition.tokens[id].kind == TokenKind::kByte) {
      byte_ids[static_cast<unsigned char>(definition.tokens[id].bytes.front())] = id;
    }
  }
  for (char32_t c = 0; c < 128; ++c) {
    byte_ids[c] = pieces.id_of(c) == SentencePieceTables::kUnknown ? byte_ids[c] : pieces.id_of(c);
  }
}

void check_bytes(const TokenizerModel& model, const SentencePieceForm& form, std::string_view document) {
  std::array<bool, 256> has_token{};
  for (const Token& token : model.definition.tokens) {
    if (token.kind == TokenKind::kByte) {
      has_token[static_cast<unsigned char>(token.bytes.front())] = true;
    }
  }
  const auto missing = std::find(has_token.begin(), has_token.end(), false) - has_token.begin();
  if (form.byte_fallback && missing < 256) {
    fail(ErrorCode::kUnsupported, "{}: the vocabulary falls back to bytes, but has no token <0x{:02X}>", document,
         missing);
  }
  if (!form.byte_fallback && !form.unknown) {
    fail(ErrorCode::kUnsupported,
         "{}: there is neither an unknown token nor a fallback to bytes: characters without a token would be lost",
         document);
  }
}

}  // namespace

void add_merge(TokenizerDefinition& definition, const TokenIds& ids, std::string_view left, std::string_view right,
               std::size_t number) {
  const auto id_of = [&](std::string_view token, std::string_view what) {
    const auto found = ids.find(token);
    if (found == ids.end()) {
      fail(ErrorCode::kCorrupt, "{}: merge {} ({} with {}): {} {} is not in the vocabulary", definition.name, number,
           in_quotes(left), in_quotes(right), what, in_quotes(token));
    }
    return found->second;
  };
  MergeRule rule;
  rule.left = id_of(left, "the left token");
  rule.right = id_of(right, "the right token");
  rule.result = id_of(std::string(left).append(right), "their result");
  definition.merges.push_back(rule);
}

Token token_of_characters(std::string_view characters) {
  if (auto bytes = from_characters(characters); bytes && !bytes->empty()) {
    return {std::move(*bytes), TokenKind::kNormal};
  }
  return {std::string(characters), TokenKind::kForeign};
}

std::optional<std::uint32_t> usual_end_of_text(const TokenizerDefinition& definition) {
  for (const std::string_view name :
       {"<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "<|eot_id|>"}) {
    for (std::size_t id = 0; id < definition.tokens.size(); ++id) {
      if (is_added(definition.tokens[id].kind) && definition.tokens[id].bytes == name) {
        return static_cast<std::uint32_t>(id);
      }
    }
  }
  return std::nullopt;
}

TokenizerModel::TokenizerModel(TokenizerDefinition what, std::string_view document)
    : definition(with_one_pass(std::move(what))),
      pairs(definition.merges.size()),
      pretokenizer(definition.split_steps, document),
      fingerprint(fingerprint_of(definition)) {
  byte_ids.fill(kMaxVocabSize);
  if (definition.sentencepiece) {
    pieces = std::make_unique<const SentencePieceTables>(definition);
    byte_ids.fill(definition.sentencepiece->unknown.value_or(kMaxVocabSize));
    fill_byte_ids(definition, *pieces, byte_ids);
  }
  for (std::uint32_t id = 0; id < definition.tokens.size(); ++id) {
    const Token& token = definition.tokens[id];
    if (token.kind == TokenKind::kNormal) {
      if (token.bytes.size() == 1 && !definition.sentencepiece) {
        byte_ids[static_cast<unsigned char>(token.bytes.front())] = id;
      }
      if (definition.ignore_merges) {
        whole_pieces.emplace(token.bytes, id);
      }
    } else if (is_added(token.kind)) {
      if (token.bytes.empty()) {
        fail(ErrorCode::kCorrupt, "{}: the added token {} is empty", document, id);
      }
      AddedTokens& table = token.normalized ? added_after : added_before;
      // Whatever the file says: data that holds the end of a text must not be able to end it.
      const std::string pattern = pattern_of(definition, token);
      if (!pattern.empty()) {
        table.add(pattern, id, token.kind == TokenKind::kSpecial || id == definition.end_of_text);
      }
      if (definition.sentencepiece) {
        // With the space that it is found with, which a text has lost to it. Special tokens are not part of a text.
        const bool is_text = token.kind == TokenKind::kAdded && !pattern.empty();
        if (std::string decoded = with_spaces(is_text ? pattern : token.bytes); decoded != token.bytes) {
          decoded_added.emplace(id, std::move(decoded));
        }
      }
      added_ids.emplace(token.bytes, id);
      added_contain_breaks = added_contain_breaks || has_inner_break(bytes_of(id));
    }
  }
  const std::vector<std::uint32_t> ranks = ranks_of(definition);
  for (std::size_t i = 0; i < definition.merges.size(); ++i) {
    const MergeRule& merge = definition.merges[i];
    if (bytes_of(merge.result) != std::string(bytes_of(merge.left)).append(bytes_of(merge.right))) {
      fail(ErrorCode::kUnsupported, "{}: merge {} of tokens {} and {} makes token {}, whose text is another", document,
           i, merge.left, merge.right, merge.result);
    }
    if (definition.sentencepiece && (piece_of_token(definition.tokens[merge.left]).find(' ') != std::string::npos ||
                                     piece_of_token(definition.tokens[merge.right]).find(' ') != std::string::npos)) {
      fail(ErrorCode::kUnsupported, "{}: merge {} has a token with a space, expected U+2581 for it", document, i);
    }
    pairs[std::uint64_t{merge.left} << 32 | merge.right] = {ranks[i], merge.result};
  }
}

std::string_view TokenizerModel::bytes_of(std::uint32_t id) const {
  const auto found = decoded_added.empty() ? decoded_added.end() : decoded_added.find(id);
  return found == decoded_added.end() ? definition.tokens[id].bytes : found->second;
}

std::shared_ptr<const TokenizerModel> build_model(TokenizerDefinition definition, std::string_view document) {
  auto model = std::make_shared<const TokenizerModel>(std::move(definition), document);
  if (const auto& form = model->definition.sentencepiece) {
    check_bytes(*model, *form, document);
    return model;
  }
  for (unsigned byte = 0; byte < 256; ++byte) {
    if (model->byte_ids[byte] == kMaxVocabSize) {
      fail(ErrorCode::kUnsupported,
           "{}: byte 0x{:02X} has no token; only byte-level BPE, with a token for each byte, is supported", document,
           byte);
    }
  }
  return model;
}

}  // namespace lockstep
