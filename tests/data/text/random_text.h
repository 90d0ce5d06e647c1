// Random texts for property tests: from bytes, from code points, and from snippets that tokenizers treat in special
// ways.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/random.h"
#include "data/text/unicode.h"

namespace lockstep {

class RandomText {
 public:
  explicit RandomText(std::uint64_t seed) : key_(random_key(seed, RandomUse::kGeneration)) {}

  // In [0, limit).
  std::uint32_t below(std::uint32_t limit) { return philox(key_, counter_++)[0] % limit; }

  std::string bytes(std::size_t length) {
    std::string text;
    while (text.size() < length) {
      text.push_back(static_cast<char>(below(256)));
    }
    return text;
  }

  // Valid UTF-8.
  std::string snippets(std::size_t count) {
    constexpr auto kSnippets =
        std::to_array<std::string_view>({" ",          "  ",         "\n",
                                         "\r\n",       "\t",         "\v",
                                         "'s",         "'S",         "'ll",
                                         "'LL",        "'\u017F",    "'",
                                         "'re",        "a",          "B",
                                         "the",        "Hello",      "don't",
                                         "1",          "2024",       "\u0663",
                                         "\u00BD",     "\u00B2",     "\u2167",
                                         "!",          "?!",         "-->",
                                         "_",          "::",         "\u00A0",
                                         "\u3000",     "\u2028",     "\u0085",
                                         "\u1680",     "\u180E",     "\u200B",
                                         "\u200D",     "\uFEFF",     "\x1C",
                                         "\x1F",       "\x7F",       "\u00E9",
                                         "e\u0301",    "\u00DF",     "\u0434",
                                         "\u6211",     "\u3042",     "\uAC00",
                                         "\u0E01",     "\u0915",     "\u093F",
                                         "\u05D0",     "\u0627",     "\u212A",
                                         "\u017F",     "\uFFFD",     "\uE000",
                                         "\uFFFF",     "\u2019",     "\u2203",
                                         "\u00A9",     "\U0001F680", "\U0001F468\u200D\U0001F469",
                                         "\U0001D54F", "\U0010FFFF", "<|endoftext|>",
                                         "<"});
    std::string text;
    for (std::size_t i = 0; i < count; ++i) {
      text += kSnippets[below(kSnippets.size())];
    }
    if (below(8) == 0) {
      text.push_back('\0');
    }
    return text;
  }

  // Valid UTF-8: any code point but surrogates, low ones more often.
  std::string code_points(std::size_t count) {
    std::string text;
    while (count > 0) {
      constexpr auto kLimits = std::to_array<std::uint32_t>({0x80, 0x300, 0x3100, 0x10000, 0x110000});
      const char32_t c = below(kLimits[below(kLimits.size())]);
      if (c < 0xD800 || c > 0xDFFF) {
        append_utf8(text, c);
        --count;
      }
    }
    return text;
  }

 private:
  RandomKey key_;
  std::uint64_t counter_ = 0;
};

}  // namespace lockstep
