// A call's arguments, by the parameters of what is called.
#pragma once

#include <initializer_list>
#include <string_view>
#include <vector>

#include "data/chat/jinja/value.h"

namespace lockstep::jinja {

class BoundArguments {
 public:
  // The first `required` of the parameters must be given. Throws Failure for arguments that do not fit.
  BoundArguments(std::string_view function, const Arguments& arguments,
                 std::initializer_list<std::string_view> parameters, std::size_t required);

  [[nodiscard]] bool has(std::size_t i) const { return values_[i].has_value(); }
  [[nodiscard]] const Value& operator[](std::size_t i) const { return *values_[i]; }
  [[nodiscard]] Value get(std::size_t i, Value otherwise) const { return has(i) ? *values_[i] : std::move(otherwise); }
  [[nodiscard]] bool flag(std::size_t i, bool otherwise) const { return has(i) ? values_[i]->truth() : otherwise; }
  // Throw Failure for a value of another type.
  [[nodiscard]] std::int64_t integer(std::size_t i, std::int64_t otherwise) const;
  [[nodiscard]] const Text& text(std::size_t i) const;
  // Null where it is missing or none.
  [[nodiscard]] const Text* optional_text(std::size_t i) const;

 private:
  std::string_view function_;
  std::vector<std::string_view> parameters_;
  std::vector<std::optional<Value>> values_;
};

}  // namespace lockstep::jinja
