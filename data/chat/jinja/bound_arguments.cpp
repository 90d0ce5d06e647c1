#include "data/chat/jinja/bound_arguments.h"

#include <algorithm>

namespace lockstep::jinja {

BoundArguments::BoundArguments(std::string_view function, const Arguments& arguments,
                               std::initializer_list<std::string_view> parameters, std::size_t required)
    : function_(function), parameters_(parameters), values_(parameters.size()) {
  expect(arguments.positional.size() <= parameters_.size(), "{} is given {} arguments, expected at most {}", function,
         arguments.positional.size(), parameters_.size());
  std::copy(arguments.positional.begin(), arguments.positional.end(), values_.begin());
  for (const auto& [name, value] : arguments.named) {
    const auto found = std::ranges::find(parameters_, name);
    expect(found != parameters_.end(), "{} has no argument {}", function, name);
    std::optional<Value>& place = values_[static_cast<std::size_t>(found - parameters_.begin())];
    expect(!place.has_value(), "{} is given the argument {} twice", function, name);
    place = value;
  }
  for (std::size_t i = 0; i < required; ++i) {
    expect(has(i), "{}: the argument {} is missing", function, parameters_[i]);
  }
}

std::int64_t BoundArguments::integer(std::size_t i, std::int64_t otherwise) const {
  if (!has(i)) {
    return otherwise;
  }
  const auto number = values_[i]->integer();
  expect(number.has_value(), "{}: {} is a {}, expected an integer", function_, parameters_[i], values_[i]->type());
  return *number;
}

const Text& BoundArguments::text(std::size_t i) const {
  const Text* const found = values_[i]->text();
  expect(found != nullptr, "{}: {} is a {}, expected a text", function_, parameters_[i], values_[i]->type());
  return *found;
}

const Text* BoundArguments::optional_text(std::size_t i) const {
  return has(i) && !values_[i]->is_none() ? &text(i) : nullptr;
}

}  // namespace lockstep::jinja
