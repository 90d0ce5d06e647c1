// What files of filters share: how a filter is called, and their tables. Filters of texts are in filters_texts.cpp, of
// numbers in filters_numbers.cpp, of sequences and dicts in filters_sequences.cpp, of whatever value in filters.cpp.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <map>
#include <string_view>

#include "data/chat/jinja/bound_arguments.h"
#include "data/chat/jinja/value.h"

namespace lockstep::jinja {

// A filter, as a template calls it.
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
using Filters = std::map<std::string_view, Filter>;

// By name.
[[nodiscard]] Filters text_filters();
[[nodiscard]] Filters number_filters();
[[nodiscard]] Filters sequence_filters();

// Jinja's attribute="a.b.0": of a value, part by part.
[[nodiscard]] Value attribute_path(Value value, const Value& path, Budget& budget);
// Null where an argument is missing or none.
[[nodiscard]] const Value* if_given(const BoundArguments& arguments, std::size_t i);
// Throws Failure for an undefined value.
void expect_defined(const Value& value);

}  // namespace lockstep::jinja
