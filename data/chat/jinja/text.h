// Texts of a chat template: characters that remember who said them.
//
// A character is a code point in the low 21 bits of a char32_t; the bits above are its mark. Marks travel with the
// characters through everything that a template does to them (slices, joins, splits, trims), and nothing that compares
// or looks for text sees them. So what a user said can be told apart from what the template wrote in any rendering.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace lockstep::jinja {

inline constexpr char32_t kCodePointMask = 0x1FFFFF;
// Written inside {% generation %} ... {% endgeneration %}.
inline constexpr char32_t kGenerationMark = char32_t{1} << 31;
// Whom the character is of: 0 for the template, 1 to kMaxSpeaker for whatever the context says.
inline constexpr unsigned kSpeakerShift = 21;
inline constexpr unsigned kMaxSpeaker = 1023;

[[nodiscard]] constexpr char32_t code_point(char32_t c) { return c & kCodePointMask; }
[[nodiscard]] constexpr unsigned speaker_of(char32_t c) { return (c >> kSpeakerShift) & kMaxSpeaker; }
// `point` with the mark of `like`.
[[nodiscard]] constexpr char32_t marked_as(char32_t like, char32_t point) { return (like & ~kCodePointMask) | point; }

struct MarkedTraits : std::char_traits<char32_t> {
  static constexpr bool eq(char32_t a, char32_t b) { return code_point(a) == code_point(b); }
  static constexpr bool lt(char32_t a, char32_t b) { return code_point(a) < code_point(b); }
  static constexpr int compare(const char32_t* a, const char32_t* b, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) {
      if (!eq(a[i], b[i])) {
        return lt(a[i], b[i]) ? -1 : 1;
      }
    }
    return 0;
  }
  static constexpr const char32_t* find(const char32_t* text, std::size_t n, const char32_t& c) {
    for (std::size_t i = 0; i < n; ++i) {
      if (eq(text[i], c)) {
        return text + i;
      }
    }
    return nullptr;
  }
};

using Text = std::basic_string<char32_t, MarkedTraits>;
using TextView = std::basic_string_view<char32_t, MarkedTraits>;

// Bytes that are not UTF-8 become U+FFFD.
[[nodiscard]] Text to_text(std::string_view utf8, unsigned speaker = 0);
[[nodiscard]] std::string to_utf8(TextView text);

// As Python's str methods have them; `upper` and its like map characters one to one.
[[nodiscard]] bool is_space(char32_t c);
[[nodiscard]] Text upper(TextView text);
[[nodiscard]] Text lower(TextView text);
[[nodiscard]] Text capitalized(TextView text);
// Strips characters of `characters` (all white space where that is null) from the sides that are asked for.
struct Sides {
  bool left = false;
  bool right = false;
};
[[nodiscard]] TextView stripped(TextView text, const Text* characters, Sides sides);

}  // namespace lockstep::jinja
