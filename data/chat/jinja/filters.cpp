#include "data/chat/jinja/filters.h"

#include <algorithm>
#include <string>

#include "data/chat/jinja/filters_impl.h"
#include "data/chat/jinja/methods.h"
#include "data/chat/jinja/operators.h"
#include "data/text/unicode.h"

namespace lockstep::jinja {
namespace {

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

const Filters& all_filters() {
  static const Filters kFilters = [] {
    Filters all = {{"default", default_value}, {"d", default_value}, {"attr", attribute}};
    all.merge(text_filters());
    all.merge(number_filters());
    all.merge(sequence_filters());
    return all;
  }();
  return kFilters;
}

}  // namespace

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

const Value* if_given(const BoundArguments& arguments, std::size_t i) {
  return arguments.has(i) && !arguments[i].is_none() ? &arguments[i] : nullptr;
}

void expect_defined(const Value& value) {
  expect(!value.is_undefined(), "{}", value.is_undefined() ? value.get_if<Undefined>()->what : std::string());
}

bool is_filter(std::string_view name) { return all_filters().contains(name); }

Value apply_filter(std::string_view name, const Arguments& arguments, Budget& budget) {
  const auto found = all_filters().find(name);
  expect(found != all_filters().end(), "the filter {} is not supported", name);
  budget.charge(1);
  return found->second({found->first, arguments, budget});
}

}  // namespace lockstep::jinja
