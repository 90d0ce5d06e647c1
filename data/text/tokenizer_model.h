// What a tokenizer is made of. Readers fill a TokenizerDefinition, build_model() checks it and makes the tables that
// encoding needs; nothing outside data/text includes this.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "data/text/added_tokens.h"
#include "data/text/flat_map.h"
#include "data/text/pretokenizer.h"
#include "data/text/sentencepiece.h"

namespace lockstep {

// No vocabulary is larger; checked before memory is taken for ids that a file names.
inline constexpr std::uint32_t kMaxVocabSize = std::uint32_t{1} << 21;

enum class TokenKind : std::uint8_t {
  kHole,     // no token has this id
  kNormal,   // a byte (SentencePiece: a character), or made by a merge
  kForeign,  // in the vocabulary, but not written in the byte alphabet: it decodes to its text, encoding never yields
             // it
  kAdded,    // found in the text as a whole
  kSpecial,  // the same, where special tokens are recognised
  kByte,     // SentencePiece: a byte of a character that has no token
};

struct Token {
  std::string bytes;  // of an added token its text as files have it: SentencePiece's may have U+2581 for spaces
  TokenKind kind = TokenKind::kHole;
  bool normalized = false;  // an added token that is looked for after normalisation, not before
};

struct MergeRule {
  std::uint32_t left = 0;
  std::uint32_t right = 0;
  std::uint32_t result = 0;
};

struct TokenizerDefinition {
  std::string name;
  std::vector<Token> tokens;                       // by id
  std::vector<MergeRule> merges;                   // by rank: the first applies first
  std::optional<SentencePieceForm> sentencepiece;  // byte-level BPE without it
  std::vector<SplitStep> split_steps;              // this and the next two: of byte-level BPE
  bool nfc = false;
  bool ignore_merges = false;  // a piece that is a token becomes that token, whatever the merges would make of it
  std::optional<std::uint32_t> end_of_text;
  std::optional<std::uint32_t> beginning_of_text;
  std::string json;  // the tokenizer.json it was read from, if any
};

// Ids by the tokens' form in files, which merges are written in.
using TokenIds = std::unordered_map<std::string_view, std::uint32_t>;

// Adds the merge of two tokens, each in the form of files, to `definition`. `number` counts from 0.
// Throws Error(kCorrupt), beginning with definition.name, unless the parts and their concatenation are tokens.
void add_merge(TokenizerDefinition& definition, const TokenIds& ids, std::string_view left, std::string_view right,
               std::size_t number);

// A vocabulary's entry in the form of files, as a token: normal where it is written in the byte alphabet.
[[nodiscard]] Token token_of_characters(std::string_view characters);

// The end-of-text token by the usual names, among the added tokens.
[[nodiscard]] std::optional<std::uint32_t> usual_end_of_text(const TokenizerDefinition& definition);

struct TokenizerModel {
  struct PairValue {
    std::uint32_t rank = 0;
    std::uint32_t result = 0;
  };

  TokenizerDefinition definition;
  // Where there is none, kMaxVocabSize. SentencePiece: of ASCII the characters' ids, else of the byte tokens, else the
  // unknown token's.
  std::array<std::uint32_t, 256> byte_ids{};
  std::unique_ptr<const SentencePieceTables> pieces;                 // of a SentencePiece tokenizer
  std::unordered_map<std::uint32_t, std::string> decoded_added;      // of added tokens that are decoded to other text
  FlatMap<PairValue> pairs;                                          // key: left << 32 | right
  std::unordered_map<std::string_view, std::uint32_t> whole_pieces;  // filled when ignore_merges
  AddedTokens added_before;                                          // looked for in the text as it is
  AddedTokens added_after;                                           // looked for in the normalised text
  std::unordered_map<std::string_view, std::uint32_t> added_ids;
  bool added_contain_breaks = false;  // some added token has a space or a line break after another character
  PreTokenizer pretokenizer;
  std::string fingerprint;

  // What decode() gives for a token.
  [[nodiscard]] std::string_view bytes_of(std::uint32_t id) const;

  // Views in the tables point into the definition.
  TokenizerModel(TokenizerDefinition what, std::string_view document);
  TokenizerModel(const TokenizerModel&) = delete;
  TokenizerModel& operator=(const TokenizerModel&) = delete;
};

// Throws Error(kUnsupported) when one of the 256 bytes has no token (SentencePiece: and there is no unknown token) or a
// merge would change the text, Error(kCorrupt) for an empty added token; the messages begin with `document`.
[[nodiscard]] std::shared_ptr<const TokenizerModel> build_model(TokenizerDefinition definition,
                                                                std::string_view document);

}  // namespace lockstep
