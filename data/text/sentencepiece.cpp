#include "data/text/sentencepiece.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <unordered_map>

#include "base/error.h"
#include "data/text/tokenizer_model.h"
#include "data/text/unicode.h"

namespace lockstep {
namespace {

constexpr std::size_t kMaxScoredTokenBytes = 1024;

std::string replaced(std::string_view text, std::string_view from, std::string_view to) {
  std::string result;
  result.reserve(text.size());
  std::size_t begin = 0;
  for (std::size_t at = text.find(from); at != std::string_view::npos; at = text.find(from, begin)) {
    result.append(text, begin, at - begin);
    result += to;
    begin = at + from.size();
  }
  result.append(text, begin);
  return result;
}

// The byte of "<0x0A>".
std::optional<char> byte_of(std::string_view piece) {
  unsigned value = 0;
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece.back() != '>') {
    return std::nullopt;
  }
  std::from_chars(piece.data() + 3, piece.data() + 5, value, 16);
  return fmt::format("<0x{:02X}>", value) == piece ? std::optional(static_cast<char>(value)) : std::nullopt;
}

// The character that `text` is, if it is one.
std::optional<char32_t> single_character(std::string_view text) {
  const CodePoint c = decode_utf8(text, 0);
  return c.length > 0 && c.length == text.size() ? std::optional(c.value) : std::nullopt;
}

}  // namespace

std::string with_spaces(std::string_view text) { return replaced(text, kSpaceMark, " "); }

std::string with_space_marks(std::string_view text) { return replaced(text, " ", kSpaceMark); }

Token token_of_piece(std::string_view piece, const SentencePieceForm& form) {
  if (const auto byte = form.byte_fallback ? byte_of(piece) : std::nullopt) {
    return {std::string(1, *byte), TokenKind::kByte};
  }
  // No text has a space once they are replaced.
  const bool is_reachable = !piece.empty() && piece.find(' ') == std::string_view::npos;
  return {is_reachable ? with_spaces(piece) : std::string(piece),
          is_reachable ? TokenKind::kNormal : TokenKind::kForeign};
}

Token token_of_model_piece(std::string_view piece, PieceType type, bool byte_fallback, std::string_view name) {
  if (type == PieceType::kUnknown || type == PieceType::kControl) {
    return {std::string(piece), TokenKind::kSpecial};
  }
  if (type == PieceType::kUserDefined) {
    return {std::string(piece), TokenKind::kAdded};
  }
  SentencePieceForm form;
  form.byte_fallback = true;
  Token token = token_of_piece(piece, form);
  const bool is_byte = type == PieceType::kByte;
  if ((token.kind == TokenKind::kByte) != is_byte || (is_byte && !byte_fallback)) {
    fail(ErrorCode::kCorrupt, "{}: the piece {} is {}marked as a byte{}", name, in_quotes(piece), is_byte ? "" : "not ",
         is_byte && !byte_fallback ? ", but trainer_spec.byte_fallback is false" : "");
  }
  return token;
}

std::string piece_of_token(const Token& token) {
  switch (token.kind) {
    case TokenKind::kByte:
      return fmt::format("<0x{:02X}>", static_cast<unsigned char>(token.bytes.front()));
    case TokenKind::kNormal:
      return with_space_marks(token.bytes);
    default:
      return token.bytes;
  }
}

void add_scored_merges(TokenizerDefinition& definition) {
  std::unordered_map<std::string_view, std::uint32_t> ids;
  for (std::uint32_t id = 0; id < definition.tokens.size(); ++id) {
    if (definition.tokens[id].kind == TokenKind::kNormal) {
      ids.emplace(definition.tokens[id].bytes, id);
    }
  }
  for (std::uint32_t id = 0; id < definition.tokens.size(); ++id) {
    const std::string_view text = definition.tokens[id].bytes;
    if (definition.tokens[id].kind != TokenKind::kNormal) {
      continue;
    }
    if (text.size() > kMaxScoredTokenBytes) {
      fail(ErrorCode::kUnsupported, "{}: token {} has {} bytes, expected at most {}", definition.name, id, text.size(),
           kMaxScoredTokenBytes);
    }
    for (std::size_t at = 0; at < text.size(); at += decode_utf8(text, at).length) {
      const auto left = ids.find(text.substr(0, at));
      const auto right = ids.find(text.substr(at));
      if (left != ids.end() && right != ids.end()) {
        definition.merges.push_back({left->second, right->second, id});
      }
    }
  }
  const std::vector<float>& scores = definition.sentencepiece->scores;
  std::stable_sort(definition.merges.begin(), definition.merges.end(), [&](const MergeRule& a, const MergeRule& b) {
    const std::size_t left_of_a = definition.tokens[a.left].bytes.size();
    const std::size_t left_of_b = definition.tokens[b.left].bytes.size();
    return scores[a.result] != scores[b.result] ? scores[a.result] > scores[b.result] : left_of_a > left_of_b;
  });
}

SentencePieceTables::SentencePieceTables(const TokenizerDefinition& definition) {
  ascii_ids_.fill(kUnknown);
  for (std::uint32_t id = 0; id < definition.tokens.size(); ++id) {
    const Token& token = definition.tokens[id];
    // An added token can be a character of the vocabulary as well. Where data must not contain it, it is none.
    const bool is_also_added = token.kind == TokenKind::kAdded && id != definition.end_of_text;
    if (token.kind != TokenKind::kNormal && !is_also_added) {
      continue;
    }
    if (const auto character =
            single_character(token.kind == TokenKind::kAdded ? with_spaces(token.bytes) : token.bytes)) {
      (*character < kAscii ? ascii_ids_[*character] : ids_[*character]) = id;
    }
  }
  for (const MergeRule& merge : definition.merges) {
    const Token& token = definition.tokens[merge.result];
    add_pairs_of(token.kind == TokenKind::kNormal ? token.bytes : with_spaces(token.bytes),
                 definition.sentencepiece->splits_words);
  }
}

void SentencePieceTables::add_pairs_of(std::string_view token, bool splits_words) {
  CodePoint left = decode_utf8(token, 0);
  for (std::size_t at = left.length; at < token.size();) {
    const CodePoint right = decode_utf8(token, at);
    if (!(splits_words && right.value == ' ')) {
      if (left.value < kAscii && right.value < kAscii) {
        ascii_pairs_[left.value * kAscii + right.value] = true;
      } else {
        pairs_[std::uint64_t{left.value} << 32 | right.value] = 1;
      }
    }
    at += right.length;
    left = right;
  }
}

}  // namespace lockstep
