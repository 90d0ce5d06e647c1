// Filters of texts, and those that make one.
#include <algorithm>
#include <string_view>
#include <vector>

#include "data/chat/jinja/filters_impl.h"
#include "data/chat/jinja/methods.h"
#include "data/text/unicode.h"

namespace lockstep::jinja {
namespace {

constexpr std::size_t kMaxLength = std::size_t{1} << 24;  // of a text

Value trim(const Use& use) {
  const BoundArguments arguments = use.bound({"value", "chars"}, 1);
  return Text(stripped(use.text(), arguments.optional_text(1), {.left = true, .right = true}));
}

Value change_case(const Use& use) {
  static_cast<void>(use.bound({"s"}, 1));
  const Text text = use.text();
  return use.name == "upper" ? upper(text) : use.name == "lower" ? lower(text) : capitalized(text);
}

// Words begin behind white space, hyphens and opening brackets.
Value title(const Use& use) {
  static_cast<void>(use.bound({"s"}, 1));
  Text text = use.text();
  bool begins = true;
  for (char32_t& c : text) {
    const char32_t point = code_point(c);
    c = marked_as(c, begins ? to_upper(point) : to_lower(point));
    begins = is_space(point) || std::u32string_view(U"-({[<").find(point) != std::u32string_view::npos;
  }
  return text;
}

Value replace(const Use& use) {
  const BoundArguments arguments = use.bound({"s", "old", "new", "count"}, 3);
  const std::int64_t most = if_given(arguments, 3) == nullptr ? -1 : arguments.integer(3, -1);
  return replaced(use.text(), {to_str(arguments[1], use.budget), to_str(arguments[2], use.budget), most}, use.budget);
}

Value join(const Use& use) {
  const BoundArguments arguments = use.bound({"value", "d", "attribute"}, 1);
  const Text between = to_str(arguments.get(1, Text()), use.budget);
  const Value* const attribute = if_given(arguments, 2);
  Text joined;
  bool is_first = true;
  for (const Value& item : use.items()) {
    const Text part = to_str(attribute == nullptr ? item : attribute_path(item, *attribute, use.budget), use.budget);
    use.budget.charge(part.size() + between.size());
    joined += is_first ? Text() : between;
    joined += part;
    is_first = false;
  }
  expect(joined.size() <= kMaxLength, "a text grows above {} characters", kMaxLength);
  return joined;
}

Value indent(const Use& use) {
  const BoundArguments arguments = use.bound({"s", "width", "first", "blank"}, 1);
  const Text* const given = arguments.has(1) ? arguments[1].text() : nullptr;
  const std::int64_t width = given == nullptr ? std::clamp<std::int64_t>(arguments.integer(1, 4), 0, 10'000) : 0;
  const Text indention = given == nullptr ? Text(static_cast<std::size_t>(width), U' ') : *given;
  const std::vector<Text> lines = lines_of(use.text() + U'\n', false);
  use.budget.charge(lines.size() * (1 + indention.size()));
  Text result = arguments.flag(2, false) ? indention : Text();
  for (std::size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) {
      result += U'\n';
      result += lines[i].empty() && !arguments.flag(3, false) ? Text() : indention;
    }
    result += lines[i];
  }
  expect(result.size() <= kMaxLength, "a text grows above {} characters", kMaxLength);
  return result;
}

Value escape(const Use& use) {
  static_cast<void>(use.bound({"s"}, 1));
  Text result;
  for (const char32_t c : use.text()) {
    const char32_t point = code_point(c);
    const std::string_view escaped = point == U'&'    ? "&amp;"
                                     : point == U'<'  ? "&lt;"
                                     : point == U'>'  ? "&gt;"
                                     : point == U'\'' ? "&#39;"
                                     : point == U'"'  ? "&#34;"
                                                      : "";
    use.budget.charge(escaped.size());
    for (const char e : escaped) {
      result += marked_as(c, static_cast<unsigned char>(e));
    }
    if (escaped.empty()) {
      result += c;
    }
  }
  return result;
}

Value as_text(const Use& use) {
  static_cast<void>(use.bound({"s"}, 1));
  return use.text();
}

Value to_json_filter(const Use& use) {
  const BoundArguments arguments = use.bound({"x", "ensure_ascii", "indent", "separators", "sort_keys"}, 1);
  JsonStyle style;
  style.ensure_ascii = arguments.flag(1, false);
  style.sort_keys = arguments.flag(4, false);
  if (const Value* const given = if_given(arguments, 2)) {
    style.indent =
        given->text() != nullptr
            ? *given->text()
            : Text(static_cast<std::size_t>(std::clamp<std::int64_t>(arguments.integer(2, 0), 0, 1000)), U' ');
  }
  if (const Value* const given = if_given(arguments, 3)) {
    const Values parts = elements(*given, use.budget);
    expect(parts.size() == 2 && parts[0].text() != nullptr && parts[1].text() != nullptr,
           "tojson: separators are not two texts");
    style.separators = {*parts[0].text(), *parts[1].text()};
  }
  return to_json(use.value(), style, use.budget);
}

}  // namespace

Filters text_filters() {
  return {{"trim", trim},
          {"upper", change_case},
          {"lower", change_case},
          {"capitalize", change_case},
          {"title", title},
          {"replace", replace},
          {"join", join},
          {"indent", indent},
          {"escape", escape},
          {"e", escape},
          {"safe", as_text},
          {"string", as_text},
          {"tojson", to_json_filter}};
}

}  // namespace lockstep::jinja
