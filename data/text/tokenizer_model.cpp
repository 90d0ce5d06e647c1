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
  return all.hex();
}

// Without a normalisation, looking for some added tokens before it and for others after it are two passes over the same
// text; when all are of one kind, one pass does.
TokenizerDefinition with_one_pass(TokenizerDefinition definition) {
  const auto looked_for = [&](bool normalized) {
    return std::any_of(definition.tokens.begin(), definition.tokens.end(),
                       [&](const Token& token) { return is_added(token.kind) && token.normalized == normalized; });
  };
  if (!definition.nfc && !looked_for(false)) {
    for (Token& token : definition.tokens) {
      token.normalized = false;
    }
  }
  return definition;
}

bool has_inner_break(std::string_view text) {
  for (std::size_t i = 1; i < text.size(); ++i) {
    if ((text[i] == ' ' || text[i] == '\n') && text[i - 1] != ' ' && text[i - 1] != '\n') {
      return true;
    }
  }
  return false;
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
  for (std::uint32_t id = 0; id < definition.tokens.size(); ++id) {
    const Token& token = definition.tokens[id];
    if (token.kind == TokenKind::kNormal) {
      if (token.bytes.size() == 1) {
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
      table.add(token.bytes, id, token.kind == TokenKind::kSpecial || id == definition.end_of_text);
      added_ids.emplace(token.bytes, id);
      added_contain_breaks = added_contain_breaks || has_inner_break(token.bytes);
    }
  }
  for (std::size_t rank = 0; rank < definition.merges.size(); ++rank) {
    const MergeRule& merge = definition.merges[rank];
    if (definition.tokens[merge.result].bytes !=
        definition.tokens[merge.left].bytes + definition.tokens[merge.right].bytes) {
      fail(ErrorCode::kUnsupported, "{}: merge {} of tokens {} and {} makes token {}, whose text is another", document,
           rank, merge.left, merge.right, merge.result);
    }
    pairs[std::uint64_t{merge.left} << 32 | merge.right] = {static_cast<std::uint32_t>(rank), merge.result};
  }
}

std::shared_ptr<const TokenizerModel> build_model(TokenizerDefinition definition, std::string_view document) {
  auto model = std::make_shared<const TokenizerModel>(std::move(definition), document);
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
