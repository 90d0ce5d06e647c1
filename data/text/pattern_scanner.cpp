#include "data/text/pattern_scanner.h"

#include <array>

#include "data/text/unicode.h"

namespace lockstep {
namespace {

constexpr std::string_view kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

constexpr std::array<CharClass, 128> make_ascii_classes() {
  std::array<CharClass, 128> classes{};
  for (unsigned c = 0; c < 128; ++c) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    const bool space = c == ' ' || (c >= 0x9 && c <= 0xD);
    classes[c] = letter                 ? CharClass::kLetter
                 : c >= '0' && c <= '9' ? CharClass::kNumber
                 : space                ? CharClass::kSpace
                                        : CharClass::kOther;
  }
  return classes;
}

constexpr std::array<CharClass, 128> kAsciiClasses = make_ascii_classes();

struct Character {
  CharClass kind = CharClass::kEnd;
  unsigned length = 0;
};

inline Character character_at(std::string_view text, std::size_t at) {
  if (at >= text.size()) {
    return {};
  }
  const auto byte = static_cast<unsigned char>(text[at]);
  if (byte < 0x80) {
    return {kAsciiClasses[byte], 1};
  }
  const CodePoint c = decode_utf8(text, at);
  return {class_of(c.value), c.length};
}

std::size_t run_end(std::string_view text, std::size_t begin, CharClass kind) {
  std::size_t at = begin;
  for (Character c = character_at(text, at); c.kind == kind; c = character_at(text, at)) {
    at += c.length;
  }
  return at;
}

bool is_line_break(char c) { return c == '\r' || c == '\n'; }

// How many bytes of 's, 't, 're, 've, 'm, 'll, 'd stand at `at`, where an apostrophe is; 0 when none. Ignoring case,
// the long s (U+017F) is an s.
std::size_t contraction_length(std::string_view text, std::size_t at, bool ignore_case) {
  const auto letter = [&](std::size_t i) {
    const char c = i < text.size() ? text[i] : '\0';
    return ignore_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  };
  const char first = letter(at + 1);
  const char second = letter(at + 2);
  switch (first) {
    case 's':
    case 't':
    case 'm':
    case 'd':
      return 2;
    case 'r':
    case 'v':
      return second == 'e' ? 3 : 0;
    case 'l':
      return second == 'l' ? 3 : 0;
    default:
      return ignore_case && first == '\xC5' && second == '\xBF' ? 3 : 0;
  }
}

// \s+(?!\S)|\s+ : a run of white space leaves its last character to what follows, unless it has only that one.
std::size_t white_space_end(std::string_view text, std::size_t begin) {
  std::size_t last = begin;
  std::size_t end = begin;
  Character c = character_at(text, begin);
  for (; c.kind == CharClass::kSpace; c = character_at(text, end)) {
    last = end;
    end += c.length;
  }
  return c.kind == CharClass::kEnd || last == begin ? end : last;
}

std::size_t gpt2_piece_end(std::string_view text, std::size_t begin) {
  if (text[begin] == '\'') {
    if (const std::size_t length = contraction_length(text, begin, false); length != 0) {
      return begin + length;
    }
  }
  std::size_t at = begin;
  Character c = character_at(text, at);
  if (text[begin] == ' ') {
    const Character next = character_at(text, begin + 1);
    if (next.kind != CharClass::kSpace && next.kind != CharClass::kEnd) {
      at = begin + 1;
      c = next;
    }
  }
  return c.kind == CharClass::kSpace ? white_space_end(text, begin) : run_end(text, at + c.length, c.kind);
}

// \s*[\r\n]+|\s+(?!\S)|\s+
std::size_t line_break_or_white_space_end(std::string_view text, std::size_t begin) {
  const std::size_t end = run_end(text, begin, CharClass::kSpace);
  for (std::size_t at = end; at > begin; --at) {
    if (is_line_break(text[at - 1])) {
      return at;
    }
  }
  return white_space_end(text, begin);
}

std::size_t llama3_piece_end(std::string_view text, std::size_t begin, unsigned max_digits) {
  if (text[begin] == '\'') {
    if (const std::size_t length = contraction_length(text, begin, true); length != 0) {
      return begin + length;
    }
  }
  const Character c = character_at(text, begin);
  if (c.kind == CharClass::kLetter) {
    return run_end(text, begin + c.length, CharClass::kLetter);
  }
  if (c.kind == CharClass::kNumber) {
    std::size_t at = begin + c.length;
    for (unsigned digits = 1; digits < max_digits; ++digits) {
      const Character next = character_at(text, at);
      if (next.kind != CharClass::kNumber) {
        break;
      }
      at += next.length;
    }
    return at;
  }
  const Character next = character_at(text, begin + c.length);
  if (next.kind == CharClass::kLetter && !is_line_break(text[begin])) {
    return run_end(text, begin + c.length + next.length, CharClass::kLetter);
  }
  if (c.kind == CharClass::kOther || (text[begin] == ' ' && next.kind == CharClass::kOther)) {
    std::size_t at = run_end(text, begin + c.length, CharClass::kOther);
    while (at < text.size() && is_line_break(text[at])) {
      ++at;
    }
    return at;
  }
  return line_break_or_white_space_end(text, begin);
}

// The class of the character that ends at `end`; kEnd when it is not valid UTF-8.
CharClass class_before(std::string_view text, std::size_t end) {
  for (std::size_t length = 1; length <= 4 && length <= end; ++length) {
    const CodePoint c = decode_utf8(text.substr(0, end), end - length);
    if (c.length == length) {
      return class_of(c.value);
    }
  }
  return CharClass::kEnd;
}

}  // namespace

std::string_view expression_of(KnownPattern pattern) {
  switch (pattern) {
    case KnownPattern::kGpt2:
      return kGpt2;
    case KnownPattern::kLlama3:
      return kLlama3;
    case KnownPattern::kQwen2:
      return kQwen2;
  }
  return {};
}

std::optional<KnownPattern> known_pattern(std::string_view expression) {
  for (const KnownPattern pattern : {KnownPattern::kGpt2, KnownPattern::kLlama3, KnownPattern::kQwen2}) {
    if (expression == expression_of(pattern)) {
      return pattern;
    }
  }
  return std::nullopt;
}

std::size_t piece_end(KnownPattern pattern, std::string_view text, std::size_t begin) {
  switch (pattern) {
    case KnownPattern::kGpt2:
      return gpt2_piece_end(text, begin);
    case KnownPattern::kLlama3:
      return llama3_piece_end(text, begin, 3);
    case KnownPattern::kQwen2:
      return llama3_piece_end(text, begin, 1);
  }
  return text.size();
}

std::size_t last_certain_cut(KnownPattern pattern, std::string_view text) {
  // A space only ever begins a piece or continues white space. So does a line break, but for Llama 3 and Qwen it also
  // ends a piece of punctuation.
  for (std::size_t at = text.size(); at-- > 1;) {
    if (text[at] != ' ' && text[at] != '\n') {
      continue;
    }
    const CharClass before = class_before(text, at);
    const bool word = before == CharClass::kLetter || before == CharClass::kNumber;
    if (word || (before == CharClass::kOther && (text[at] == ' ' || pattern == KnownPattern::kGpt2))) {
      return at;
    }
  }
  return 0;
}

}  // namespace lockstep
