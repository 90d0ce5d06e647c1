// What operators do: Python's, on the values of templates. All throw Failure where Python raises.
#pragma once

#include <string_view>

#include "data/chat/jinja/value.h"

namespace lockstep::jinja {

// + - * / // % **
[[nodiscard]] Value binary(std::string_view name, const Value& a, const Value& b, Budget& budget);
// + -
[[nodiscard]] Value signed_value(std::string_view name, const Value& value);
// == != < <= > >= in, and "not in"
[[nodiscard]] bool compare(std::string_view name, const Value& a, const Value& b, Budget& budget);

// of.name: a method, or what a dict has under the name; undefined where there is nothing.
[[nodiscard]] Value attribute_of(const Value& of, std::string_view name, Budget& budget);
// of[key]: an element, or what a dict has, or a method of that name.
[[nodiscard]] Value item_of(const Value& of, const Value& key, Budget& budget);
// Where a slice begins, ends, and by how much it goes on; none: as far as there is.
struct Slice {
  Value begin;
  Value end;
  Value step;
};
[[nodiscard]] Value slice_of(const Value& of, const Slice& slice, Budget& budget);

[[nodiscard]] Value call(const Value& function, const Arguments& arguments);

}  // namespace lockstep::jinja
