#include "data/chat/jinja/methods.h"

#include <algorithm>
#include <array>
#include <map>

#include "data/chat/jinja/bound_arguments.h"
#include "data/text/unicode.h"

namespace lockstep::jinja {
namespace {

constexpr std::size_t kMaxLength = std::size_t{1} << 24;  // of a text

struct Call {
  std::string_view name;
  const Value& self;
  const Arguments& arguments;
  Budget& budget;

  [[nodiscard]] const Text& text() const { return *self.text(); }
  [[nodiscard]] BoundArguments bound(std::initializer_list<std::string_view> parameters, std::size_t required) const {
    return {name, arguments, parameters, required};
  }
};
using Method = Value (*)(const Call&);
using Methods = std::map<std::string_view, Method>;

Value from_texts(std::vector<Text> parts) {
  Values items;
  items.reserve(parts.size());
  for (Text& part : parts) {
    items.emplace_back(std::move(part));
  }
  return Value::list(std::move(items));
}

// Texts
Value strip(const Call& call) {
  const BoundArguments arguments = call.bound({"chars"}, 0);
  call.budget.charge(call.text().size());
  const Sides sides{.left = call.name != "rstrip", .right = call.name != "lstrip"};
  return Text(stripped(call.text(), arguments.optional_text(0), sides));
}

// Words between white space; what is left over goes into one word more.
std::vector<Text> split_at_blanks(TextView text, std::int64_t most, bool from_right) {
  std::vector<Text> parts;
  const Sides outer{.left = !from_right, .right = from_right};
  while (true) {
    text = stripped(text, nullptr, outer);
    if (text.empty()) {
      break;
    }
    if (most == 0) {
      parts.emplace_back(text);
      break;
    }
    most -= most > 0 ? 1 : 0;
    std::size_t size = 0;
    while (size < text.size() && !is_space(from_right ? text[text.size() - 1 - size] : text[size])) {
      ++size;
    }
    parts.emplace_back(from_right ? text.substr(text.size() - size) : text.substr(0, size));
    if (from_right) {
      text.remove_suffix(size);
    } else {
      text.remove_prefix(size);
    }
  }
  return parts;
}

std::vector<Text> split_at(TextView text, TextView separator, std::int64_t most, bool from_right) {
  std::vector<Text> parts;
  while (most != 0) {
    const std::size_t found = from_right ? text.rfind(separator) : text.find(separator);
    if (found == TextView::npos) {
      break;
    }
    most -= most > 0 ? 1 : 0;
    const std::size_t behind = found + separator.size();
    parts.emplace_back(from_right ? text.substr(behind) : text.substr(0, found));
    text = from_right ? text.substr(0, found) : text.substr(behind);
  }
  parts.emplace_back(text);
  return parts;
}

Value split(const Call& call) {
  const BoundArguments arguments = call.bound({"sep", "maxsplit"}, 0);
  const bool from_right = call.name == "rsplit";
  const Text* const separator = arguments.optional_text(0);
  const std::int64_t most = arguments.integer(1, -1);
  call.budget.charge_search(call.text().size(), separator == nullptr ? 1 : separator->size());
  std::vector<Text> parts;
  if (separator == nullptr) {
    parts = split_at_blanks(call.text(), most, from_right);
  } else {
    expect(!separator->empty(), "{} is given an empty separator", call.name);
    parts = split_at(call.text(), *separator, most, from_right);
  }
  call.budget.charge(parts.size() * 8);
  if (from_right) {
    std::ranges::reverse(parts);
  }
  return from_texts(std::move(parts));
}

Value partition(const Call& call) {
  const BoundArguments arguments = call.bound({"sep"}, 1);
  const Text& separator = arguments.text(0);
  expect(!separator.empty(), "{} is given an empty separator", call.name);
  call.budget.charge_search(call.text().size(), separator.size());
  const bool from_right = call.name == "rpartition";
  const std::size_t found = from_right ? call.text().rfind(separator) : call.text().find(separator);
  if (found == Text::npos) {
    return Value::sequence(SequenceKind::kTuple,
                           from_right ? Values{Text(), Text(), call.self} : Values{call.self, Text(), Text()});
  }
  return Value::sequence(SequenceKind::kTuple,
                         {call.text().substr(0, found), call.text().substr(found, separator.size()),
                          call.text().substr(found + separator.size())});
}

Value split_lines(const Call& call) {
  const BoundArguments arguments = call.bound({"keepends"}, 0);
  call.budget.charge(call.text().size() * 2);
  return from_texts(lines_of(call.text(), arguments.flag(0, false)));
}

// Of one text, or of any in a tuple.
Value starts_or_ends(const Call& call) {
  const BoundArguments arguments = call.bound({"prefix", "start", "end"}, 1);
  expect(!arguments.has(1), "{} from some place on is not supported", call.name);
  const auto fits = [&](const Value& with) {
    expect(with.text() != nullptr, "{} is given a {}, expected a text or a tuple of texts", call.name, with.type());
    call.budget.charge(1 + with.text()->size());
    return call.name == "startswith" ? call.text().starts_with(*with.text()) : call.text().ends_with(*with.text());
  };
  const Sequence* const several = arguments[0].sequence();
  if (several != nullptr && several->kind == SequenceKind::kTuple) {
    return std::ranges::any_of(several->items, fits);
  }
  return fits(arguments[0]);
}

Value replace(const Call& call) {
  const BoundArguments arguments = call.bound({"old", "new", "count"}, 2);
  return replaced(call.text(), {arguments.text(0), arguments.text(1), arguments.integer(2, -1)}, call.budget);
}

Value change_case(const Call& call) {
  static_cast<void>(call.bound({}, 0));
  call.budget.charge(call.text().size());
  if (call.name == "upper" || call.name == "lower") {
    return call.name == "upper" ? upper(call.text()) : lower(call.text());
  }
  return capitalized(call.text());
}

// Each run of letters as a word.
Value title(const Call& call) {
  static_cast<void>(call.bound({}, 0));
  call.budget.charge(call.text().size());
  Text result = call.text();
  bool in_word = false;
  for (char32_t& c : result) {
    const char32_t point = code_point(c);
    c = marked_as(c, in_word ? to_lower(point) : to_title(point));
    in_word = class_of(point) == CharClass::kLetter;
  }
  return result;
}

Value find(const Call& call) {
  const BoundArguments arguments = call.bound({"sub", "start", "end"}, 1);
  expect(!arguments.has(1), "{} from some place on is not supported", call.name);
  call.budget.charge_search(call.text().size(), arguments.text(0).size());
  const bool from_right = call.name == "rfind" || call.name == "rindex";
  const std::size_t found = from_right ? call.text().rfind(arguments.text(0)) : call.text().find(arguments.text(0));
  expect(found != Text::npos || call.name.ends_with("find"), "{}: the text is not there", call.name);
  return found == Text::npos ? std::int64_t{-1} : static_cast<std::int64_t>(found);
}

Value count_text(const Call& call) {
  const BoundArguments arguments = call.bound({"sub"}, 1);
  const Text& what = arguments.text(0);
  call.budget.charge_search(call.text().size(), what.size());
  if (what.empty()) {
    return static_cast<std::int64_t>(call.text().size() + 1);
  }
  std::int64_t count = 0;
  for (std::size_t at = call.text().find(what); at != Text::npos; at = call.text().find(what, at + what.size())) {
    ++count;
  }
  return count;
}

Value join(const Call& call) {
  const BoundArguments arguments = call.bound({"iterable"}, 1);
  Text joined;
  bool is_first = true;
  for (const Value& part : elements(arguments[0], call.budget)) {
    expect(part.text() != nullptr, "join is given a {}, expected texts", part.type());
    call.budget.charge(call.text().size() + part.text()->size());
    joined += is_first ? Text() : call.text();
    joined += *part.text();
    is_first = false;
  }
  expect(joined.size() <= kMaxLength, "a text grows above {} characters", kMaxLength);
  return joined;
}

Value remove_affix(const Call& call) {
  const BoundArguments arguments = call.bound({"prefix"}, 1);
  const Text& affix = arguments.text(0);
  call.budget.charge(call.text().size());
  if (call.name == "removeprefix") {
    return call.text().starts_with(affix) ? call.text().substr(affix.size()) : call.text();
  }
  return call.text().ends_with(affix) ? call.text().substr(0, call.text().size() - affix.size()) : call.text();
}

// isdigit, isalpha, isalnum, isspace: of every character, and there is one.
Value is_all(const Call& call) {
  static_cast<void>(call.bound({}, 0));
  call.budget.charge(call.text().size());
  const auto fits = [&](char32_t c) {
    const CharClass of = class_of(code_point(c));
    const bool is_letter = of == CharClass::kLetter;
    const bool is_number = of == CharClass::kNumber;
    return call.name == "isspace"   ? is_space(c)
           : call.name == "isalpha" ? is_letter
           : call.name == "isalnum" ? is_letter || is_number
                                    : is_number;
  };
  return !call.text().empty() && std::ranges::all_of(call.text(), fits);
}

// isupper, islower: of every character that has case, and there is one.
Value has_case(const Call& call) {
  static_cast<void>(call.bound({}, 0));
  call.budget.charge(call.text().size());
  bool found = false;
  for (const char32_t c : call.text()) {
    const char32_t point = code_point(c);
    if (to_lower(point) == to_upper(point)) {
      continue;
    }
    if (point != (call.name == "isupper" ? to_upper(point) : to_lower(point))) {
      return false;
    }
    found = true;
  }
  return found;
}

const Methods& text_methods() {
  static const Methods kMethods = {{"strip", strip},
                                   {"lstrip", strip},
                                   {"rstrip", strip},
                                   {"split", split},
                                   {"rsplit", split},
                                   {"partition", partition},
                                   {"rpartition", partition},
                                   {"splitlines", split_lines},
                                   {"replace", replace},
                                   {"startswith", starts_or_ends},
                                   {"endswith", starts_or_ends},
                                   {"upper", change_case},
                                   {"lower", change_case},
                                   {"capitalize", change_case},
                                   {"title", title},
                                   {"find", find},
                                   {"rfind", find},
                                   {"index", find},
                                   {"rindex", find},
                                   {"count", count_text},
                                   {"join", join},
                                   {"removeprefix", remove_affix},
                                   {"removesuffix", remove_affix},
                                   {"isdigit", is_all},
                                   {"isalpha", is_all},
                                   {"isalnum", is_all},
                                   {"isspace", is_all},
                                   {"isupper", has_case},
                                   {"islower", has_case}};
  return kMethods;
}

constexpr std::array<std::string_view, 17> kOtherTextMethods = {
    "casefold", "center",    "encode",       "expandtabs", "format",   "format_map",
    "isascii",  "isdecimal", "isidentifier", "isnumeric",  "istitle",  "isprintable",
    "ljust",    "rjust",     "maketrans",    "swapcase",   "translate"};

// Dicts
Value get(const Call& call) {
  const BoundArguments arguments = call.bound({"key", "default"}, 1);
  call.budget.charge(call.self.dict()->entries.size());
  const Value* const found = call.self.dict()->find(arguments[0]);
  return found != nullptr ? *found : arguments.get(1, {});
}

Value views(const Call& call) {
  static_cast<void>(call.bound({}, 0));
  Values items;
  call.budget.charge(call.self.dict()->entries.size() * 8);
  for (const auto& [key, value] : call.self.dict()->entries) {
    items.push_back(call.name == "keys"     ? key
                    : call.name == "values" ? value
                                            : Value::sequence(SequenceKind::kTuple, {key, value}));
  }
  return Value::sequence(call.name == "keys"     ? SequenceKind::kKeys
                         : call.name == "values" ? SequenceKind::kValues
                                                 : SequenceKind::kItems,
                         std::move(items));
}

Value copy(const Call& call) {
  static_cast<void>(call.bound({}, 0));
  return call.self;
}

const Methods& dict_methods() {
  static const Methods kMethods = {{"get", get}, {"items", views}, {"keys", views}, {"values", views}, {"copy", copy}};
  return kMethods;
}

// Lists and tuples
Value index_of(const Call& call) {
  const BoundArguments arguments = call.bound({"value"}, 1);
  const Values& items = call.self.sequence()->items;
  const auto found =
      std::ranges::find_if(items, [&](const Value& item) { return equal(item, arguments[0], call.budget); });
  expect(found != items.end(), "index: the value is not in the list");
  return static_cast<std::int64_t>(found - items.begin());
}

Value count_item(const Call& call) {
  const BoundArguments arguments = call.bound({"value"}, 1);
  return static_cast<std::int64_t>(std::ranges::count_if(
      call.self.sequence()->items, [&](const Value& item) { return equal(item, arguments[0], call.budget); }));
}

const Methods& list_methods() {
  static const Methods kMethods = {{"index", index_of}, {"count", count_item}, {"copy", copy}};
  return kMethods;
}

constexpr std::array<std::string_view, 11> kForbidden = {"append",  "clear", "extend",  "insert",     "pop",   "remove",
                                                         "reverse", "sort",  "popitem", "setdefault", "update"};

bool is_forbidden(const Value& of, std::string_view name) {
  const bool is_dict = of.dict() != nullptr;
  const bool is_list = of.sequence() != nullptr && of.sequence()->kind == SequenceKind::kList;
  const auto place = std::ranges::find(kForbidden, name) - kForbidden.begin();
  return (is_list && place < 8) || (is_dict && (name == "clear" || name == "pop" || (place >= 8 && place < 11)));
}

}  // namespace

std::optional<Value> method_of(const Value& of, std::string_view name, Budget& budget) {
  const bool is_list = of.sequence() != nullptr && of.sequence()->kind <= SequenceKind::kTuple;
  const Methods* const methods = of.text() != nullptr   ? &text_methods()
                                 : of.dict() != nullptr ? &dict_methods()
                                 : is_list              ? &list_methods()
                                                        : nullptr;
  if (methods == nullptr) {
    return std::nullopt;
  }
  if (is_forbidden(of, name)) {
    return Value::undefined(fmt::format("{} would change a {}, which templates may not", name, of.type()));
  }
  expect(of.text() == nullptr || std::ranges::find(kOtherTextMethods, name) == kOtherTextMethods.end(),
         "the method {} of texts is not supported", name);
  const auto found = methods->find(name);
  if (found == methods->end()) {
    return std::nullopt;
  }
  const Method method = found->second;
  const std::string_view known_name = found->first;
  return std::make_shared<const Callable>(
      Callable{std::string(name), [self = of, method, known_name, &budget](const Arguments& arguments) {
                 return method({known_name, self, arguments, budget});
               }});
}

Value loop_attribute(const Loop& loop, std::string_view name) {
  const auto number = [](std::size_t n) { return Value(static_cast<std::int64_t>(n)); };
  const std::size_t left = loop.items->size() - loop.index;
  if (name == "index" || name == "index0") {
    return number(loop.index + (name == "index" ? 1 : 0));
  }
  if (name == "revindex" || name == "revindex0") {
    return number(left - (name == "revindex" ? 0 : 1));
  }
  if (name == "first" || name == "last") {
    return name == "first" ? loop.index == 0 : left == 1;
  }
  if (name == "length") {
    return number(loop.items->size());
  }
  if (name == "depth" || name == "depth0") {
    return std::int64_t{loop.depth - (name == "depth" ? 0 : 1)};
  }
  if (name == "previtem") {
    return loop.index > 0 ? (*loop.items)[loop.index - 1] : Value::undefined("there is no previous item");
  }
  if (name == "nextitem") {
    return left > 1 ? (*loop.items)[loop.index + 1] : Value::undefined("there is no next item");
  }
  expect(name != "cycle" && name != "changed", "loop.{} is not supported", name);
  return Value::undefined(fmt::format("loop has no {}", in_quotes(name)));
}

Text replaced(TextView text, const Replacement& replacement, Budget& budget) {
  budget.charge_search(text.size(), replacement.from.size());
  Text result;
  std::int64_t left = replacement.most;
  std::size_t begin = 0;
  // An empty text stands before each character and at the end.
  const bool is_empty = replacement.from.empty();
  while (left != 0) {
    const std::size_t found = text.find(replacement.from, begin);
    if (found == TextView::npos) {
      break;
    }
    budget.charge(1 + replacement.to.size());
    expect(result.size() + replacement.to.size() <= kMaxLength, "a text grows above {} characters", kMaxLength);
    result += text.substr(begin, found - begin);
    result += replacement.to;
    left -= left > 0 ? 1 : 0;
    begin = found + replacement.from.size();
    if (is_empty) {
      if (begin == text.size()) {
        return result;
      }
      result += text[begin];
      ++begin;
    }
  }
  result += text.substr(begin);
  return result;
}

std::vector<Text> lines_of(TextView text, bool keep_ends) {
  const auto is_end = [](char32_t c) {
    const char32_t p = code_point(c);
    return (p >= U'\n' && p <= U'\r') || (p >= 0x1C && p <= 0x1E) || p == 0x85 || p == 0x2028 || p == 0x2029;
  };
  std::vector<Text> lines;
  while (!text.empty()) {
    const auto end = static_cast<std::size_t>(std::ranges::find_if(text, is_end) - text.begin());
    std::size_t behind = std::min(end + 1, text.size());
    if (end + 1 < text.size() && code_point(text[end]) == U'\r' && code_point(text[end + 1]) == U'\n') {
      ++behind;
    }
    lines.emplace_back(text.substr(0, keep_ends ? behind : end));
    text.remove_prefix(behind);
  }
  return lines;
}

}  // namespace lockstep::jinja
