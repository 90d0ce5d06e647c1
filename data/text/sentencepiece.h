// SentencePiece BPE (Kudo and Richardson, "SentencePiece", 2018): the kind of Llama 2, Mistral 7B and Gemma.
//
// Where byte-level BPE cuts a text into words and merges bytes, this merges the characters of a whole text, with each
// space written as U+2581. A character that the vocabulary lacks becomes the tokens of its bytes, "<0xE2>", or the
// unknown token. Here tokens hold the space itself, and U+2581 in a text counts as a space.
#pragma once

#include <array>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/text/flat_map.h"

namespace lockstep {

struct Token;
struct TokenizerDefinition;

// Which parts of a text get a space put before them. Special tokens, and others that are recognised as a whole, cut a
// text into parts.
enum class PrefixSpace : std::uint8_t { kNone, kTextStart, kEveryPart };

struct SentencePieceForm {
  PrefixSpace prefix = PrefixSpace::kNone;
  bool prefix_before_space = false;  // also to a part that begins with a space
  // Spaces are put and replaced before tokens with Token::normalized are looked for, not after.
  bool normalizes_first = false;
  bool splits_words = false;  // no token goes on behind the space that begins a word
  bool drops_prefix = false;  // decode() leaves out one space at the beginning
  bool byte_fallback = false;
  bool fuses_unknown = true;             // neighbouring unknown characters are one unknown token
  std::optional<std::uint32_t> unknown;  // the unknown token
  // Of a SentencePiece model, by id: merges of equal score rank equally, and tokens with Token::normalized are looked
  // for as they stand. Empty for a tokenizer.json of another program, whose merges are a list.
  std::vector<float> scores;
};

inline constexpr std::string_view kSpaceMark = "\u2581";

// `text` with spaces for U+2581, and the other way round.
[[nodiscard]] std::string with_spaces(std::string_view text);
[[nodiscard]] std::string with_space_marks(std::string_view text);

// ModelProto.SentencePiece.Type, and GGUF's tokenizer.ggml.token_type.
enum class PieceType : std::uint8_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

// A piece of a SentencePiece model as a token. An unused one is a normal one: whether it may be made is the caller's
// business. Throws Error(kCorrupt), which begins with `name`, for a byte's piece that is none or not marked as one.
[[nodiscard]] Token token_of_model_piece(std::string_view piece, PieceType type, bool byte_fallback,
                                         std::string_view name);

// A vocabulary's entry in the form of files: a byte's token where there is a fallback to them, or text with U+2581 for
// spaces.
[[nodiscard]] Token token_of_piece(std::string_view piece, const SentencePieceForm& form);

// The other way round: "<0x0A>", or text with U+2581 for spaces; of an added token its text.
[[nodiscard]] std::string piece_of_token(const Token& token);

// Gives `definition` every merge of two normal tokens into a third, by falling score of the result; among the ways to
// make one token those with the longer left part first, as transformers lists them. Throws Error(kUnsupported) for a
// token of more than 1024 bytes.
void add_scored_merges(TokenizerDefinition& definition);

// What encoding needs beside the merges: the ids of characters, and which characters can stand side by side in a token
// that a merge makes. Between two that cannot, a text may be cut: what is left and right of it is merged independently.
class SentencePieceTables {
 public:
  static constexpr std::uint32_t kUnknown = ~std::uint32_t{0};

  explicit SentencePieceTables(const TokenizerDefinition& definition);

  // kUnknown for a character without a token.
  [[nodiscard]] std::uint32_t id_of(char32_t character) const {
    if (character < kAscii) {
      return ascii_ids_[character];
    }
    const std::uint32_t* const found = ids_.find(character);
    return found == nullptr ? kUnknown : *found;
  }

  [[nodiscard]] bool joins(char32_t left, char32_t right) const {
    if (left < kAscii && right < kAscii) {
      return ascii_pairs_[left * kAscii + right];
    }
    return pairs_.find(std::uint64_t{left} << 32 | right) != nullptr;
  }

 private:
  static constexpr std::size_t kAscii = 128;
  void add_pairs_of(std::string_view token, bool splits_words);

  std::array<std::uint32_t, kAscii> ascii_ids_{};
  FlatMap<std::uint32_t> ids_;
  std::bitset<kAscii * kAscii> ascii_pairs_;
  FlatMap<std::uint8_t> pairs_;  // key: left << 32 | right
};

}  // namespace lockstep
