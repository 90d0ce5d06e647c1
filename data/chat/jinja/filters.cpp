#include "data/chat/jinja/filters.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <map>

#include "data/chat/jinja/bound_arguments.h"
#include "data/chat/jinja/methods.h"
#include "data/chat/jinja/operators.h"
#include "data/text/unicode.h"

namespace lockstep::jinja {
namespace {

constexpr std::size_t kMaxLength = std::size_t{1} << 24;  // of a text

struct Use {
  std::string_view name;
  const Arguments& arguments;
  Budget& budget;

  [[nodiscard]] const Value& value() const { return arguments.positional.front(); }
  [[nodiscard]] Text text() const {
    Text text = to_str(value(), budget);
    budget.charge(text.size());
    return text;
  }
  [[nodiscard]] Values items() const { return elements(value(), budget); }
  // For the filters that take whatever is not true for nothing.
  [[nodiscard]] Values items_if_true() const { return value().truth() ? items() : Values(); }
  // The value counts as the first parameter.
  [[nodiscard]] BoundArguments bound(std::initializer_list<std::string_view> parameters, std::size_t required) const {
    return {name, arguments, parameters, required};
  }
};
using Filter = Value (*)(const Use&);

Value generator(Values items) { return Value::sequence(SequenceKind::kGenerator, std::move(items)); }

// Jinja's attribute="a.b.0": of a value, part by part.
Value attribute_path(Value value, const Value& path, Budget& budget) {
  if (path.integer()) {
    return item_of(value, path, budget);
  }
  expect(path.text() != nullptr, "an attribute is a {}, expected a text or a number", path.type());
  const std::string text = to_utf8(*path.text());
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find('.', begin), text.size());
    const std::string part = text.substr(begin, end - begin);
    const bool is_number =
        !part.empty() && part.find_first_not_of("0123456789") == std::string::npos && part.size() < 10;
    value = item_of(value, is_number ? Value(std::int64_t{std::stoi(part)}) : Value::text(part), budget);
    begin = end + 1;
  }
  return value;
}

// What a value is sorted by: its attribute, letters in lower case unless that matters.
struct SortKey {
  const Value* attribute = nullptr;  // null: the value itself
  bool case_sensitive = false;
  Budget& budget;

  [[nodiscard]] Value of(const Value& value) const {
    Value key = attribute == nullptr ? value : attribute_path(value, *attribute, budget);
    if (!case_sensitive && key.text() != nullptr) {
      budget.charge(key.text()->size());
      return lower(*key.text());
    }
    return key;
  }
};

const Value* if_given(const BoundArguments& arguments, std::size_t i) {
  return arguments.has(i) && !arguments[i].is_none() ? &arguments[i] : nullptr;
}

Values sorted(Values items, const SortKey& key, bool descending) {
  std::vector<std::pair<Value, Value>> keyed;
  for (Value& item : items) {
    Value by = key.of(item);
    keyed.emplace_back(std::move(by), std::move(item));
  }
  key.budget.charge(items.size() * 8);
  std::ranges::stable_sort(keyed, [&](const auto& a, const auto& b) {
    const int order = compared(a.first, b.first, key.budget).value_or(0);
    return descending ? order > 0 : order < 0;
  });
  for (std::size_t i = 0; i < items.size(); ++i) {
    items[i] = std::move(keyed[i].second);
  }
  return items;
}

// Texts
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

// Numbers
std::optional<double> parse_float(const Text& text) {
  std::string digits = to_utf8(stripped(text, nullptr, {.left = true, .right = true}));
  const bool has_plus = digits.starts_with('+');
  digits.erase(0, has_plus ? 1 : 0);
  double value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  const bool is_number = !digits.empty() && end == digits.data() + digits.size() && !(has_plus && digits[0] == '-');
  if (is_number && error == std::errc::result_out_of_range) {
    return std::strtod(digits.c_str(), nullptr);
  }
  return is_number && error == std::errc() ? std::optional(value) : std::nullopt;
}

std::optional<std::int64_t> parse_integer(const Text& text, std::int64_t base) {
  std::string digits = to_utf8(stripped(text, nullptr, {.left = true, .right = true}));
  if (digits.starts_with('+') && !digits.starts_with("+-")) {
    digits.erase(0, 1);
  }
  const std::string_view prefix = base == 16 ? "0x" : base == 8 ? "0o" : base == 2 ? "0b" : "";
  if (const std::size_t at = digits.starts_with('-') ? 1 : 0;
      !prefix.empty() && digits.substr(at).starts_with(prefix)) {
    digits.erase(at, prefix.size());
  }
  std::int64_t value = 0;
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), value, static_cast<int>(base));
  expect(error != std::errc::result_out_of_range, "the number {} does not fit", digits);
  return error == std::errc() && end == digits.data() + digits.size() ? std::optional(value) : std::nullopt;
}

std::optional<std::int64_t> truncated(std::optional<double> number) {
  if (!number || !std::isfinite(*number)) {
    return std::nullopt;
  }
  expect(std::abs(*number) < 9.2e18, "the number {} does not fit", *number);
  return static_cast<std::int64_t>(*number);
}

void expect_defined(const Value& value) {
  expect(!value.is_undefined(), "{}", value.is_undefined() ? value.get_if<Undefined>()->what : std::string());
}

Value to_int(const Use& use) {
  const BoundArguments arguments = use.bound({"value", "default", "base"}, 1);
  expect_defined(use.value());
  const Value otherwise = arguments.get(1, std::int64_t{0});
  const std::int64_t base = arguments.integer(2, 10);
  expect(base >= 2 && base <= 36, "int: the base is {}, expected 2 to 36", base);
  std::optional<std::int64_t> result = use.value().integer();
  if (const Text* const text = use.value().text()) {
    result = parse_integer(*text, base);
    result = result ? result : truncated(parse_float(*text));
  } else if (!result) {
    result = truncated(use.value().number());
  }
  return result ? Value(*result) : otherwise;
}

Value to_float(const Use& use) {
  const BoundArguments arguments = use.bound({"value", "default"}, 1);
  expect_defined(use.value());
  const Value otherwise = arguments.get(1, 0.0);
  const auto result = use.value().text() != nullptr ? parse_float(*use.value().text()) : use.value().number();
  return result ? Value(*result) : otherwise;
}

Value absolute(const Use& use) {
  static_cast<void>(use.bound({"x"}, 1));
  expect_defined(use.value());
  if (const auto whole = use.value().integer()) {
    return *whole < 0 ? signed_value("-", use.value()) : Value(*whole);
  }
  expect(use.value().number().has_value(), "abs of a {}", use.value().type());
  return std::abs(*use.value().number());
}

// The nearest number with `digits` behind the point, as Python rounds: of the exact value, ties to even.
double rounded(double value, std::int64_t digits) {
  if (!std::isfinite(value) || digits > 300) {
    return value;
  }
  if (digits < 0) {
    const double unit = std::pow(10.0, static_cast<double>(-digits));
    return std::nearbyint(value / unit) * unit;
  }
  std::array<char, 700> buffer{};
  std::snprintf(buffer.data(), buffer.size(), "%.*f", static_cast<int>(digits), value);
  return std::strtod(buffer.data(), nullptr);
}

Value round_filter(const Use& use) {
  const BoundArguments arguments = use.bound({"value", "precision", "method"}, 1);
  const std::int64_t digits = arguments.integer(1, 0);
  const std::string method = arguments.has(2) ? to_utf8(arguments.text(2)) : "common";
  expect(method == "common" || method == "ceil" || method == "floor",
         "round: the method is {}, expected common, ceil or floor", in_quotes(method));
  expect_defined(use.value());
  expect(use.value().number().has_value(), "round of a {}", use.value().type());
  if (method == "common") {
    return use.value().integer() && digits >= 0 ? Value(*use.value().integer())
                                                : Value(rounded(*use.value().number(), digits));
  }
  const double unit = std::pow(10.0, static_cast<double>(digits));
  const double scaled = *use.value().number() * unit;
  return (method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / unit;
}

// Lists
Value length_filter(const Use& use) {
  static_cast<void>(use.bound({"obj"}, 1));
  const auto size = length(use.value());
  expect(size.has_value(), "a {} has no length", use.value().type());
  return static_cast<std::int64_t>(*size);
}

Value first(const Use& use) {
  static_cast<void>(use.bound({"seq"}, 1));
  const Sequence* const sequence = use.value().sequence();
  if (sequence != nullptr && sequence->kind == SequenceKind::kGenerator && sequence->used < sequence->items.size()) {
    return sequence->items[sequence->used++];
  }
  const Values items = use.items();
  return items.empty() ? Value::undefined("there is no first item, the sequence is empty") : items.front();
}

Value last(const Use& use) {
  static_cast<void>(use.bound({"seq"}, 1));
  const Values items = use.items();
  return items.empty() ? Value::undefined("there is no last item, the sequence is empty") : items.back();
}

Value list(const Use& use) {
  static_cast<void>(use.bound({"value"}, 1));
  return Value::list(use.items());
}

Value reverse(const Use& use) {
  static_cast<void>(use.bound({"value"}, 1));
  if (use.value().text() != nullptr) {
    Text text = use.text();
    std::ranges::reverse(text);
    return text;
  }
  Values items = use.items();
  std::ranges::reverse(items);
  return generator(std::move(items));
}

Value items_filter(const Use& use) {
  static_cast<void>(use.bound({"value"}, 1));
  expect(use.value().dict() != nullptr || use.value().is_undefined(), "items of a {}, expected a dict",
         use.value().type());
  Values items;
  if (const Dict* const dict = use.value().dict()) {
    use.budget.charge(dict->entries.size() * 8);
    for (const auto& [key, value] : dict->entries) {
      items.push_back(Value::sequence(SequenceKind::kTuple, {key, value}));
    }
  }
  return generator(std::move(items));
}

Value dict_sort(const Use& use) {
  const BoundArguments arguments = use.bound({"value", "case_sensitive", "by", "reverse"}, 1);
  const std::string by = arguments.has(2) ? to_utf8(arguments.text(2)) : "key";
  expect(by == "key" || by == "value", "dictsort by {}, expected key or value", in_quotes(by));
  const Value pairs = items_filter({use.name, {{use.value()}, {}}, use.budget});
  const Value place = std::int64_t{by == "key" ? 0 : 1};
  return Value::list(
      sorted(elements(pairs, use.budget), {&place, arguments.flag(1, false), use.budget}, arguments.flag(3, false)));
}

Value sort(const Use& use) {
  const BoundArguments arguments = use.bound({"value", "reverse", "case_sensitive", "attribute"}, 1);
  return Value::list(
      sorted(use.items(), {if_given(arguments, 3), arguments.flag(2, false), use.budget}, arguments.flag(1, false)));
}

Value unique(const Use& use) {
  const BoundArguments arguments = use.bound({"value", "case_sensitive", "attribute"}, 1);
  const SortKey key{if_given(arguments, 2), arguments.flag(1, false), use.budget};
  Values seen;
  Values items;
  for (const Value& item : use.items()) {
    const Value by = key.of(item);
    if (std::ranges::none_of(seen, [&](const Value& other) { return equal(other, by, use.budget); })) {
      seen.push_back(by);
      items.push_back(item);
    }
  }
  return generator(std::move(items));
}

Value extreme(const Use& use) {
  const BoundArguments arguments = use.bound({"value", "case_sensitive", "attribute"}, 1);
  const SortKey key{if_given(arguments, 2), arguments.flag(1, false), use.budget};
  const Values items = use.items();
  if (items.empty()) {
    return Value::undefined("there is no item, the sequence is empty");
  }
  const Value* best = &items.front();
  for (const Value& item : items) {
    const int order = compared(key.of(item), key.of(*best), use.budget).value_or(0);
    best = (use.name == "min" ? order < 0 : order > 0) ? &item : best;
  }
  return *best;
}

Value sum(const Use& use) {
  const BoundArguments arguments = use.bound({"iterable", "attribute", "start"}, 1);
  const Value* const attribute = if_given(arguments, 1);
  Value total = arguments.get(2, std::int64_t{0});
  for (const Value& item : use.items()) {
    total = binary("+", total, attribute == nullptr ? item : attribute_path(item, *attribute, use.budget), use.budget);
  }
  return total;
}

// The name at `place` among the positional arguments, and the arguments behind it, with room for a value before them.
std::pair<std::string, Arguments> inner_use(const Use& use, std::size_t place) {
  const Values& given = use.arguments.positional;
  expect(given.size() > place && given[place].text() != nullptr, "{} needs a name", use.name);
  Arguments inner;
  inner.positional.emplace_back();
  inner.positional.insert(inner.positional.end(), given.begin() + static_cast<std::ptrdiff_t>(place) + 1, given.end());
  inner.named = use.arguments.named;
  return {to_utf8(*given[place].text()), std::move(inner)};
}

Value map(const Use& use) {
  Values items = use.items_if_true();
  if (use.arguments.positional.size() == 1 && !use.arguments.named.empty()) {
    const BoundArguments arguments = use.bound({"value", "attribute", "default"}, 1);
    expect(arguments.has(1), "map: the argument attribute is missing");
    for (Value& item : items) {
      item = attribute_path(item, arguments[1], use.budget);
      if (item.is_undefined() && if_given(arguments, 2) != nullptr) {
        item = arguments[2];
      }
    }
    return generator(std::move(items));
  }
  auto [name, inner] = inner_use(use, 1);
  for (Value& item : items) {
    inner.positional.front() = item;
    item = apply_filter(name, inner, use.budget);
  }
  return generator(std::move(items));
}

// select, reject, selectattr, rejectattr: by a test, or by being true.
Value select(const Use& use) {
  const bool by_attribute = use.name.ends_with("attr");
  const bool wanted = use.name.starts_with("select");
  const Values& given = use.arguments.positional;
  expect(!by_attribute || given.size() > 1, "{}: the attribute is missing", use.name);
  const std::size_t place = by_attribute ? 2 : 1;
  const bool has_test = given.size() > place;
  auto [name, inner] = has_test ? inner_use(use, place) : std::pair<std::string, Arguments>();
  Values items;
  for (const Value& item : use.items_if_true()) {
    const Value value = by_attribute ? attribute_path(item, given[1], use.budget) : item;
    if (has_test) {
      inner.positional.front() = value;
    }
    if ((has_test ? apply_test(name, inner, use.budget) : value.truth()) == wanted) {
      items.push_back(item);
    }
  }
  return generator(std::move(items));
}

Value default_value(const Use& use) {
  const BoundArguments arguments = use.bound({"value", "default_value", "boolean"}, 1);
  const bool is_missing = use.value().is_undefined() || (arguments.flag(2, false) && !use.value().truth());
  return is_missing ? arguments.get(1, Text()) : use.value();
}

Value attribute(const Use& use) {
  const BoundArguments arguments = use.bound({"obj", "name"}, 2);
  const std::string name = to_utf8(to_str(arguments[1], use.budget));
  expect_defined(use.value());
  if (use.value().dict() == nullptr) {
    return attribute_of(use.value(), name, use.budget);
  }
  // Not what a dict holds under the name.
  return method_of(use.value(), name, use.budget)
      .value_or(Value::undefined(fmt::format("a dict has no {}", in_quotes(name))));
}

const std::map<std::string_view, Filter>& all_filters() {
  static const std::map<std::string_view, Filter> kFilters = {{"trim", trim},
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
                                                              {"tojson", to_json_filter},
                                                              {"int", to_int},
                                                              {"float", to_float},
                                                              {"abs", absolute},
                                                              {"round", round_filter},
                                                              {"length", length_filter},
                                                              {"count", length_filter},
                                                              {"first", first},
                                                              {"last", last},
                                                              {"list", list},
                                                              {"reverse", reverse},
                                                              {"items", items_filter},
                                                              {"dictsort", dict_sort},
                                                              {"sort", sort},
                                                              {"unique", unique},
                                                              {"min", extreme},
                                                              {"max", extreme},
                                                              {"sum", sum},
                                                              {"map", map},
                                                              {"select", select},
                                                              {"reject", select},
                                                              {"selectattr", select},
                                                              {"rejectattr", select},
                                                              {"default", default_value},
                                                              {"d", default_value},
                                                              {"attr", attribute}};
  return kFilters;
}

}  // namespace

bool is_filter(std::string_view name) { return all_filters().contains(name); }

Value apply_filter(std::string_view name, const Arguments& arguments, Budget& budget) {
  const auto found = all_filters().find(name);
  expect(found != all_filters().end(), "the filter {} is not supported", name);
  budget.charge(1);
  return found->second({found->first, arguments, budget});
}

}  // namespace lockstep::jinja
