#include "data/chat/jinja/text.h"

#include "data/text/unicode.h"

namespace lockstep::jinja {

Text to_text(std::string_view utf8, unsigned speaker) {
  const char32_t mark = static_cast<char32_t>(speaker) << kSpeakerShift;
  Text text;
  text.reserve(utf8.size());
  for (std::size_t at = 0; at < utf8.size();) {
    const CodePoint point = decode_utf8(utf8, at);
    text.push_back(mark | (point.length == 0 ? U'\uFFFD' : point.value));
    at += point.length == 0 ? 1 : point.length;
  }
  return text;
}

std::string to_utf8(TextView text) {
  std::string utf8;
  utf8.reserve(text.size());
  for (const char32_t c : text) {
    append_utf8(utf8, code_point(c));
  }
  return utf8;
}

bool is_space(char32_t c) {
  const char32_t point = code_point(c);
  return (point >= 0x1C && point <= 0x1F) || class_of(point) == CharClass::kSpace;
}

Text upper(TextView text) {
  Text result(text);
  for (char32_t& c : result) {
    c = marked_as(c, to_upper(code_point(c)));
  }
  return result;
}

Text lower(TextView text) {
  Text result(text);
  for (char32_t& c : result) {
    c = marked_as(c, to_lower(code_point(c)));
  }
  return result;
}

Text capitalized(TextView text) {
  Text result = lower(text);
  if (!text.empty()) {
    result.front() = marked_as(text.front(), to_title(code_point(text.front())));
  }
  return result;
}

TextView stripped(TextView text, const Text* characters, Sides sides) {
  const auto goes = [&](char32_t c) { return characters == nullptr ? is_space(c) : characters->find(c) != Text::npos; };
  while (sides.left && !text.empty() && goes(text.front())) {
    text.remove_prefix(1);
  }
  while (sides.right && !text.empty() && goes(text.back())) {
    text.remove_suffix(1);
  }
  return text;
}

}  // namespace lockstep::jinja
