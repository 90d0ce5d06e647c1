// The little that tokenizers need to know of Unicode: UTF-8, letters, numbers, white space, and normal form C.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace lockstep {

struct CodePoint {
  char32_t value = 0;
  unsigned length = 0;  // bytes; 0 where the bytes are not valid UTF-8, or at the end of the text
};

// The code point at `at`. Surrogates, overlong forms and values above 10FFFF are not valid.
[[nodiscard]] CodePoint decode_utf8(std::string_view text, std::size_t at);

// Appends a valid code point.
void append_utf8(std::string& text, char32_t value);

// Where the valid UTF-8 that starts at `begin` ends.
[[nodiscard]] std::size_t valid_utf8_end(std::string_view text, std::size_t begin);

// Calls `valid` with each stretch of `text` that is valid UTF-8 and `invalid` with each stretch of bytes that are not,
// in order.
template <typename Valid, typename Invalid>
void split_by_validity(std::string_view text, const Valid& valid, const Invalid& invalid) {
  for (std::size_t begin = 0; begin < text.size();) {
    std::size_t end = valid_utf8_end(text, begin);
    if (end > begin) {
      valid(text.substr(begin, end - begin));
    } else {
      while (end < text.size() && decode_utf8(text, end).length == 0) {
        ++end;
      }
      invalid(text.substr(begin, end - begin));
    }
    begin = end;
  }
}

enum class CharClass : std::uint8_t {
  kLetter,  // \p{L}
  kNumber,  // \p{N}
  kSpace,   // the property White_Space, which is \s in the patterns of tokenizers
  kOther,
  kEnd,  // no character: the end of the text
};

[[nodiscard]] CharClass class_of(char32_t value);

// Simple mappings, one character to one: U+00DF stays where Python's str.upper() makes two letters of it.
[[nodiscard]] char32_t to_upper(char32_t value);
[[nodiscard]] char32_t to_lower(char32_t value);
[[nodiscard]] char32_t to_title(char32_t value);

// Neither a control, a format or a separator other than the space, nor private or unassigned.
[[nodiscard]] bool is_printable(char32_t value);

// `text`, valid UTF-8, in normal form C. Returns at once where nothing can change (no code point above U+02FF).
[[nodiscard]] std::string to_nfc(std::string_view text);

// For messages: in quotation marks, on one line, control characters and invalid bytes as \xNN, cut after some 60 bytes.
[[nodiscard]] std::string in_quotes(std::string_view text);

}  // namespace lockstep
