#include "data/text/encoder.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "data/text/bpe_merger.h"
#include "data/text/tokenizer_model.h"
#include "data/text/unicode.h"

namespace lockstep {
namespace {

// Remembers the ids of short words: one place for each hash value, where a new word takes the old one's. An entry is
// one cache line.
class WordCache {
 public:
  static constexpr std::size_t kMaxBytes = 30;
  static constexpr std::size_t kMaxIds = 8;

  struct alignas(64) Entry {
    std::uint8_t bytes = 0;  // 0: nothing here
    std::uint8_t ids = 0;
    std::array<char, kMaxBytes> word{};
    std::array<std::uint32_t, kMaxIds> id{};

    [[nodiscard]] bool holds(std::string_view w) const {
      return bytes == w.size() && std::memcmp(word.data(), w.data(), w.size()) == 0;
    }
  };
  static_assert(sizeof(Entry) == 64);

  explicit WordCache(std::size_t words) : entries_(words == 0 ? 0 : std::bit_ceil(words)) {}

  // Where `word` is or would go; null when it is too long or there is no cache.
  [[nodiscard]] Entry* place_of(std::string_view word) {
    if (entries_.empty() || word.size() > kMaxBytes) {
      return nullptr;
    }
    return &entries_[static_cast<std::size_t>(hash(word)) & (entries_.size() - 1)];
  }

 private:
  static std::uint64_t load(const char* p, std::size_t n) {
    std::uint64_t value = 0;
    std::memcpy(&value, p, n);
    return value;
  }
  static std::uint64_t mix(std::uint64_t state, std::uint64_t value) {
    const std::uint64_t x = (state ^ value) * 0x9E3779B97F4A7C15U;
    return x ^ (x >> 32);
  }
  static std::uint64_t hash(std::string_view word) {
    const char* p = word.data();
    std::size_t n = word.size();
    std::uint64_t state = n;
    for (; n >= 8; n -= 8, p += 8) {
      state = mix(state, load(p, 8));
    }
    if (n >= 4) {
      state = mix(state, load(p, 4) | load(p + n - 4, 4) << 32);
    } else if (n > 0) {
      state = mix(state, load(p, 1) | load(p + n / 2, 1) << 8 | load(p + n - 1, 1) << 16);
    }
    return state;
  }

  std::vector<Entry> entries_;
};

}  // namespace

struct Encoder::State : PieceSink {
  State(const TokenizerModel& m, std::size_t cache_words)
      : model(m), cache(cache_words), scratch(m.pretokenizer), pattern(m.pretokenizer.single_known_pattern()) {}

  void encode(std::string_view text, bool with_special);
  void encode_normalized(std::string_view text, bool with_special);
  void encode_plain(std::string_view text);
  void encode_valid(std::string_view text);
  void take(std::string_view piece) override;
  void encode_bytes(std::string_view text);
  void encode_sentencepiece(std::string_view text, bool with_special, TextPlace place);
  std::string_view with_prefix(std::string_view part, TextPlace place);
  void encode_pieces(std::string_view text);
  void encode_valid_pieces(std::string_view text);

  const TokenizerModel& model;
  WordCache cache;
  BpeMerger merger;
  PreTokenizer::Scratch scratch;
  std::optional<KnownPattern> pattern;
  std::string normal;                         // a part of a text with its spaces as tokens have them
  std::vector<std::uint32_t>* ids = nullptr;  // where the call in progress puts them
};

namespace {

// Calls `plain` with each stretch of `text` between tokens of `tokens`, and puts the tokens' ids.
template <typename Plain>
void split_off_tokens(const AddedTokens& tokens, std::string_view text, bool with_special,
                      std::vector<std::uint32_t>& ids, const Plain& plain) {
  std::size_t begin = 0;
  if (!tokens.empty()) {
    while (const auto found = tokens.find(text, begin, with_special)) {
      if (found->begin > begin) {
        plain(text.substr(begin, found->begin - begin));
      }
      ids.push_back(found->id);
      begin = found->end;
    }
  }
  if (begin < text.size()) {
    plain(text.substr(begin));
  }
}

// Normal form C of the valid parts; bytes that are not UTF-8 stay.
std::string normalized(std::string_view text) {
  std::string result;
  split_by_validity(
      text, [&](std::string_view valid) { result += to_nfc(valid); },
      [&](std::string_view invalid) { result += invalid; });
  return result;
}

}  // namespace

void Encoder::State::encode(std::string_view text, bool with_special) {
  split_off_tokens(model.added_before, text, with_special, *ids, [&](std::string_view plain) {
    if (model.definition.nfc) {
      encode_normalized(normalized(plain), with_special);
    } else {
      encode_normalized(plain, with_special);
    }
  });
}

void Encoder::State::encode_normalized(std::string_view text, bool with_special) {
  split_off_tokens(model.added_after, text, with_special, *ids, [&](std::string_view plain) { encode_plain(plain); });
}

// Bytes that are not UTF-8 end the text for the patterns: each stretch of them is a piece, what lies between is cut by
// itself.
void Encoder::State::encode_plain(std::string_view text) {
  if (model.definition.merges.empty() && !model.definition.ignore_merges) {
    encode_bytes(text);
    return;
  }
  split_by_validity(
      text, [this](std::string_view valid) { encode_valid(valid); },
      [this](std::string_view invalid) { take(invalid); });
}

void Encoder::State::encode_valid(std::string_view text) {
  if (!pattern) {
    model.pretokenizer.split(text, scratch, *this);
    return;
  }
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = piece_end(*pattern, text, begin);
    take(text.substr(begin, end - begin));
    begin = end;
  }
}

void Encoder::State::take(std::string_view piece) {
  if (piece.size() == 1) {
    ids->push_back(model.byte_ids[static_cast<unsigned char>(piece.front())]);
    return;
  }
  WordCache::Entry* const entry = cache.place_of(piece);
  if (entry != nullptr && entry->holds(piece)) {
    ids->insert(ids->end(), entry->id.begin(), entry->id.begin() + entry->ids);
    return;
  }
  const std::size_t before = ids->size();
  merger.merge(model, piece, *ids);
  const std::size_t count = ids->size() - before;
  if (entry != nullptr && count <= WordCache::kMaxIds) {
    entry->bytes = static_cast<std::uint8_t>(piece.size());
    entry->ids = static_cast<std::uint8_t>(count);
    std::copy(piece.begin(), piece.end(), entry->word.begin());
    std::copy(ids->begin() + static_cast<std::ptrdiff_t>(before), ids->end(), entry->id.begin());
  }
}

void Encoder::State::encode_bytes(std::string_view text) {
  const std::size_t before = ids->size();
  ids->resize(before + text.size());
  std::transform(text.begin(), text.end(), ids->begin() + static_cast<std::ptrdiff_t>(before),
                 [&](char byte) { return model.byte_ids[static_cast<unsigned char>(byte)]; });
}

void Encoder::State::encode_sentencepiece(std::string_view text, bool with_special, TextPlace place) {
  const bool normalizes_first = model.definition.sentencepiece->normalizes_first;
  split_off_tokens(model.added_before, text, with_special, *ids, [&](std::string_view part) {
    const TextPlace place_of_part = part.data() == text.data() ? place : TextPlace::kAfterToken;
    const std::string_view whole = normalizes_first ? with_prefix(part, place_of_part) : part;
    split_off_tokens(model.added_after, whole, with_special, *ids, [&](std::string_view plain) {
      const TextPlace place_of_plain = plain.data() == whole.data() ? place_of_part : TextPlace::kAfterToken;
      encode_pieces(normalizes_first ? plain : with_prefix(plain, place_of_plain));
    });
  });
}

// The result is valid until the next call.
std::string_view Encoder::State::with_prefix(std::string_view part, TextPlace place) {
  const SentencePieceForm& form = *model.definition.sentencepiece;
  const bool has_marks = part.find(kSpaceMark) != std::string_view::npos;
  const bool is_place = form.prefix == PrefixSpace::kEveryPart
                            ? place != TextPlace::kInside
                            : form.prefix == PrefixSpace::kTextStart && place == TextPlace::kStart;
  const bool starts_with_space = part.starts_with(' ') || part.starts_with(kSpaceMark);
  const bool has_prefix = is_place && (form.prefix_before_space || !starts_with_space);
  if (!has_prefix && !has_marks) {
    return part;
  }
  normal.assign(has_prefix ? 1 : 0, ' ');
  normal += has_marks ? with_spaces(part) : part;
  return normal;
}

void Encoder::State::encode_pieces(std::string_view text) {
  const SentencePieceForm& form = *model.definition.sentencepiece;
  const std::size_t before = ids->size();
  split_by_validity(
      text, [this](std::string_view valid) { encode_valid_pieces(valid); },
      [this](std::string_view invalid) { encode_bytes(invalid); });
  if (!form.byte_fallback && form.fuses_unknown) {
    const auto both_unknown = [&](std::uint32_t a, std::uint32_t b) { return a == b && a == form.unknown; };
    ids->erase(std::unique(ids->begin() + static_cast<std::ptrdiff_t>(before), ids->end(), both_unknown), ids->end());
  }
}

// Cuts wherever no merge can join the two characters.
void Encoder::State::encode_valid_pieces(std::string_view text) {
  const auto character = [text](std::size_t at) {
    const auto byte = static_cast<unsigned char>(text[at]);
    return byte < 0x80 ? CodePoint{byte, 1} : decode_utf8(text, at);
  };
  std::size_t begin = 0;
  CodePoint left = character(0);
  for (std::size_t at = left.length; at < text.size();) {
    const CodePoint right = character(at);
    if (!model.pieces->joins(left.value, right.value)) {
      take(text.substr(begin, at - begin));
      begin = at;
    }
    at += right.length;
    left = right;
  }
  take(text.substr(begin));
}

Encoder::Encoder(Tokenizer tokenizer, EncoderOptions options)
    : tokenizer_(std::move(tokenizer)), state_(std::make_unique<State>(tokenizer_.model(), options.cache_words)) {}

Encoder::~Encoder() = default;
Encoder::Encoder(Encoder&&) noexcept = default;
Encoder& Encoder::operator=(Encoder&&) noexcept = default;

void Encoder::encode(std::string_view text, std::vector<std::uint32_t>& ids, SpecialTokens special_tokens,
                     TextPlace place) {
  const bool with_special = special_tokens == SpecialTokens::kRecognized;
  state_->ids = &ids;
  if (state_->model.pieces) {
    state_->encode_sentencepiece(text, with_special, place);
  } else {
    state_->encode(text, with_special);
  }
}

}  // namespace lockstep
