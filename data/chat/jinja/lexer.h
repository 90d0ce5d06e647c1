// A template's source as tokens, with Jinja's control of white space: trim_blocks and lstrip_blocks are on.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lockstep::jinja {

struct Token {
  enum class Kind : std::uint8_t {
    kText,        // between tags
    kPrintBegin,  // {{
    kPrintEnd,    // }}
    kBlockBegin,  // {%
    kBlockEnd,    // %}
    kName,
    kString,  // its characters, escapes resolved
    kInteger,
    kFloat,
    kOperator,
    kEnd,  // of the template
  };
  Kind kind = Kind::kEnd;
  std::string text;
  int line = 1;

  [[nodiscard]] bool is(Kind k, std::string_view t) const { return kind == k && text == t; }
};

// Ends with one token kEnd. Throws Failure with the line.
[[nodiscard]] std::vector<Token> tokenize(std::string_view source);

}  // namespace lockstep::jinja
