#include "data/text/sentencepiece_model.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "base/error.h"
#include "data/text/unicode.h"

namespace lockstep {
namespace {

// The fields of one message, in order, with every access checked.
class ProtoMessage {
 public:
  // `offset` is where the message stands in the file, for messages.
  ProtoMessage(std::string_view bytes, std::size_t offset, std::string_view name)
      : bytes_(bytes), offset_(offset), name_(name) {}

  // Goes to the next field; false at the end. The field before has to be read or skipped.
  bool next() {
    if (at_ == bytes_.size()) {
      return false;
    }
    const std::uint64_t tag = varint();
    number_ = tag >> 3;
    wire_ = static_cast<unsigned>(tag & 7);
    return true;
  }
  [[nodiscard]] std::uint64_t number() const { return number_; }

  std::uint64_t integer() {
    expect(kVarint, "an integer");
    return varint();
  }
  bool flag() { return integer() != 0; }
  float real() {
    expect(kFixed32, "a float");
    std::uint32_t bits = 0;
    for (unsigned shift = 0; shift < 32; shift += 8) {
      bits |= std::uint32_t{byte()} << shift;
    }
    return std::bit_cast<float>(bits);
  }
  std::string_view text() {
    expect(kLengthDelimited, "a string or a message");
    const std::uint64_t size = varint();
    if (size > bytes_.size() - at_) {
      fail(ErrorCode::kCorrupt, "{}: field {} before byte {} has {} bytes, but there are {} more", name_, number_,
           offset_ + at_, size, bytes_.size() - at_);
    }
    at_ += static_cast<std::size_t>(size);
    return bytes_.substr(at_ - static_cast<std::size_t>(size), static_cast<std::size_t>(size));
  }
  ProtoMessage message() {
    const std::string_view inner = text();
    return {inner, offset_ + at_ - inner.size(), name_};
  }
  void skip() {
    switch (wire_) {
      case kVarint:
        static_cast<void>(varint());
        break;
      case kLengthDelimited:
        static_cast<void>(text());
        break;
      case kFixed32:
      case kFixed64:
        for (int i = 0; i < (wire_ == kFixed32 ? 4 : 8); ++i) {
          static_cast<void>(byte());
        }
        break;
      default:
        fail(ErrorCode::kCorrupt, "{}: not a SentencePiece model: field {} before byte {} has the type {}", name_,
             number_, offset_ + at_, wire_);
    }
  }

 private:
  static constexpr unsigned kVarint = 0;
  static constexpr unsigned kFixed64 = 1;
  static constexpr unsigned kLengthDelimited = 2;
  static constexpr unsigned kFixed32 = 5;

  std::uint8_t byte() {
    if (at_ == bytes_.size()) {
      fail(ErrorCode::kCorrupt, "{}: ends at byte {} inside field {}", name_, offset_ + at_, number_);
    }
    return static_cast<std::uint8_t>(bytes_[at_++]);
  }
  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      const std::uint8_t next = byte();
      value |= std::uint64_t{next & 0x7FU} << shift;
      if (next < 0x80) {
        return value;
      }
    }
    fail(ErrorCode::kCorrupt, "{}: not a SentencePiece model: the number before byte {} has no end", name_,
         offset_ + at_);
  }
  void expect(unsigned wire, std::string_view expected) const {
    if (wire_ != wire) {
      fail(ErrorCode::kCorrupt, "{}: not a SentencePiece model: field {} before byte {} has the type {}, expected {}",
           name_, number_, offset_ + at_, wire_, expected);
    }
  }

  std::string_view bytes_;
  std::size_t offset_ = 0;
  std::string_view name_;
  std::size_t at_ = 0;
  std::uint64_t number_ = 0;
  unsigned wire_ = 0;
};

struct Piece {
  std::string_view text;
  float score = 0.0F;
  PieceType type = PieceType::kNormal;
};

// The fields that are read, with the defaults of the .proto file.
struct Model {
  std::vector<Piece> pieces;
  std::uint64_t model_type = 1;
  bool byte_fallback = false;
  bool space_is_suffix = false;
  std::string_view bos_piece = "<s>";
  std::string_view eos_piece = "</s>";
  std::string_view normalization;
  bool has_character_map = false;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
};

Piece read_piece(ProtoMessage message, std::size_t id, std::string_view name) {
  Piece piece;
  while (message.next()) {
    switch (message.number()) {
      case 1:
        piece.text = message.text();
        break;
      case 2:
        piece.score = message.real();
        break;
      case 3: {
        const std::uint64_t type = message.integer();
        if (type < 1 || type > 6) {
          fail(ErrorCode::kCorrupt, "{}: piece {} has the type {}, expected 1 to 6", name, id, type);
        }
        piece.type = static_cast<PieceType>(type);
        break;
      }
      default:
        message.skip();
    }
  }
  return piece;
}

void read_trainer_spec(ProtoMessage message, Model& model) {
  while (message.next()) {
    switch (message.number()) {
      case 3:
        model.model_type = message.integer();
        break;
      case 24:
        model.space_is_suffix = message.flag();
        break;
      case 35:
        model.byte_fallback = message.flag();
        break;
      case 46:
        model.bos_piece = message.text();
        break;
      case 47:
        model.eos_piece = message.text();
        break;
      default:
        message.skip();
    }
  }
}

void read_normalizer_spec(ProtoMessage message, Model& model) {
  while (message.next()) {
    switch (message.number()) {
      case 1:
        model.normalization = message.text();
        break;
      case 2:
        model.has_character_map = !message.text().empty();
        break;
      case 3:
        model.add_dummy_prefix = message.flag();
        break;
      case 4:
        model.remove_extra_whitespaces = message.flag();
        break;
      case 5:
        model.escape_whitespaces = message.flag();
        break;
      default:
        message.skip();
    }
  }
}

Model read_model(std::string_view bytes, std::string_view name) {
  Model model;
  ProtoMessage message(bytes, 0, name);
  while (message.next()) {
    switch (message.number()) {
      case 1:
        if (model.pieces.size() == kMaxVocabSize) {
          fail(ErrorCode::kUnsupported, "{}: more than {} pieces", name, kMaxVocabSize);
        }
        model.pieces.push_back(read_piece(message.message(), model.pieces.size(), name));
        break;
      case 2:
        read_trainer_spec(message.message(), model);
        break;
      case 3:
        read_normalizer_spec(message.message(), model);
        break;
      default:
        message.skip();
    }
  }
  return model;
}

void check_model(const Model& model, std::string_view name) {
  constexpr std::array<std::string_view, 5> kTypes = {"none", "Unigram", "BPE", "Word", "Char"};
  if (model.pieces.empty()) {
    fail(ErrorCode::kCorrupt, "{}: no pieces: is this a SentencePiece model?", name);
  }
  if (model.model_type != 2) {
    fail(ErrorCode::kUnsupported, "{}: a SentencePiece model of the type {}, which is not supported; known is BPE",
         name, model.model_type < kTypes.size() ? kTypes[model.model_type] : "unknown");
  }
  if (model.has_character_map) {
    fail(ErrorCode::kUnsupported, "{}: the normalisation {}, which is not supported; known is identity", name,
         in_quotes(model.normalization));
  }
  const auto refuse = [&](bool condition, std::string_view option, bool value) {
    if (condition) {
      fail(ErrorCode::kUnsupported, "{}: {} is {}, which is not supported; only {} is", name, option, value, !value);
    }
  };
  refuse(model.remove_extra_whitespaces, "normalizer_spec.remove_extra_whitespaces", true);
  refuse(!model.escape_whitespaces, "normalizer_spec.escape_whitespaces", false);
  refuse(model.space_is_suffix, "trainer_spec.treat_whitespace_as_suffix", true);
}

using PieceIds = std::unordered_map<std::string_view, std::uint32_t>;

// Ids by text; the texts are checked.
PieceIds ids_of(const Model& model, std::string_view name) {
  PieceIds ids;
  ids.reserve(model.pieces.size());
  for (std::uint32_t id = 0; id < model.pieces.size(); ++id) {
    const Piece& piece = model.pieces[id];
    if (piece.text.empty() || valid_utf8_end(piece.text, 0) != piece.text.size()) {
      fail(ErrorCode::kCorrupt, "{}: piece {} is {}, expected text in UTF-8", name, id,
           piece.text.empty() ? "empty" : in_quotes(piece.text));
    }
    if (!std::isfinite(piece.score)) {
      fail(ErrorCode::kCorrupt, "{}: piece {} has the score {}", name, id, piece.score);
    }
    const auto [other, is_new] = ids.emplace(piece.text, id);
    if (!is_new) {
      fail(ErrorCode::kCorrupt, "{}: the pieces {} and {} are both {}", name, other->second, id, in_quotes(piece.text));
    }
  }
  return ids;
}

// SentencePiece makes an unused piece on the way to others and takes it apart in the end.
void check_unused(const Piece& piece, const PieceIds& ids, const Model& model, std::string_view name) {
  const auto is_made = [&](std::string_view text) {
    const auto found = ids.find(text);
    return found != ids.end() && (model.pieces[found->second].type == PieceType::kNormal ||
                                  model.pieces[found->second].type == PieceType::kUnused);
  };
  for (std::size_t at = decode_utf8(piece.text, 0).length; at < piece.text.size();
       at += decode_utf8(piece.text, at).length) {
    if (is_made(piece.text.substr(0, at)) && is_made(piece.text.substr(at))) {
      fail(ErrorCode::kUnsupported, "{}: the unused piece {} can be made of others, which is not supported", name,
           in_quotes(piece.text));
    }
  }
}

}  // namespace

TokenizerDefinition read_sentencepiece_model(std::string_view bytes, std::string_view name) {
  const Model model = read_model(bytes, name);
  check_model(model, name);
  const PieceIds ids = ids_of(model, name);

  TokenizerDefinition definition;
  definition.name = name;
  SentencePieceForm& form = definition.sentencepiece.emplace();
  form.prefix = model.add_dummy_prefix ? PrefixSpace::kEveryPart : PrefixSpace::kNone;
  form.prefix_before_space = model.add_dummy_prefix;
  form.normalizes_first = true;
  form.drops_prefix = model.add_dummy_prefix;
  form.byte_fallback = model.byte_fallback;
  for (std::uint32_t id = 0; id < model.pieces.size(); ++id) {
    const Piece& piece = model.pieces[id];
    if (piece.type == PieceType::kUnknown && form.unknown) {
      fail(ErrorCode::kCorrupt, "{}: the pieces {} and {} are both marked as unknown", name, *form.unknown, id);
    }
    if (piece.type == PieceType::kUnknown) {
      form.unknown = id;
    }
    if (piece.type == PieceType::kUnused) {
      check_unused(piece, ids, model, name);
    }
    definition.tokens.push_back(token_of_model_piece(piece.text, piece.type, model.byte_fallback, name));
    definition.tokens.back().normalized = piece.type == PieceType::kUserDefined;
    form.scores.push_back(piece.score);
  }
  if (!form.unknown) {
    fail(ErrorCode::kCorrupt, "{}: no piece is marked as unknown", name);
  }
  const auto control = [&](std::string_view text) -> std::optional<std::uint32_t> {
    const auto found = ids.find(text);
    const bool is_control = found != ids.end() && model.pieces[found->second].type == PieceType::kControl;
    return is_control ? std::optional(found->second) : std::nullopt;
  };
  definition.beginning_of_text = control(model.bos_piece);
  definition.end_of_text = control(model.eos_piece);
  add_scored_merges(definition);
  return definition;
}

}  // namespace lockstep
