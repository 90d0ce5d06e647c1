#include "data/chat/jinja/operators.h"

#include <algorithm>
#include <cmath>

#include "data/chat/jinja/methods.h"
#include "data/text/unicode.h"

namespace lockstep::jinja {
namespace {

constexpr std::size_t kMaxLength = std::size_t{1} << 24;  // of a text or a list

void expect_defined(const Value& value) {
  if (const Undefined* const undefined = value.get_if<Undefined>()) {
    refuse("{}", undefined->what);
  }
}

std::int64_t whole_result(bool overflows, std::int64_t result) {
  expect(!overflows, "a number grows above what 64 bits hold");
  return result;
}

Value integer_power(std::int64_t base, std::int64_t exponent) {
  if (exponent < 0) {
    expect(base != 0, "0 cannot be raised to a negative power");
    return std::pow(static_cast<double>(base), static_cast<double>(exponent));
  }
  std::int64_t result = 1;
  if (base >= -1 && base <= 1) {
    return base == -1 ? std::int64_t{exponent % 2 == 0 ? 1 : -1} : exponent == 0 ? std::int64_t{1} : base;
  }
  for (std::int64_t i = 0; i < exponent; ++i) {
    const bool overflows = __builtin_mul_overflow(result, base, &result);
    result = whole_result(overflows, result);
  }
  return result;
}

Value integer_result(std::string_view name, std::int64_t a, std::int64_t b) {
  std::int64_t result = 0;
  if (name == "+" || name == "-" || name == "*") {
    const bool overflows = name == "+"   ? __builtin_add_overflow(a, b, &result)
                           : name == "-" ? __builtin_sub_overflow(a, b, &result)
                                         : __builtin_mul_overflow(a, b, &result);
    return whole_result(overflows, result);
  }
  if (name == "**") {
    return integer_power(a, b);
  }
  expect(b != 0, "division by zero");
  if (name == "/") {
    return static_cast<double>(a) / static_cast<double>(b);
  }
  if (b == -1) {
    return name == "%" ? std::int64_t{0} : whole_result(a == INT64_MIN, a == INT64_MIN ? 0 : -a);
  }
  const std::int64_t rest = a % b;
  const bool rounds_down = rest != 0 && (rest < 0) != (b < 0);
  return name == "%" ? rest + (rounds_down ? b : 0) : a / b - (rounds_down ? 1 : 0);
}

Value float_result(std::string_view name, double a, double b) {
  if (name == "+" || name == "-" || name == "*") {
    return name == "+" ? a + b : name == "-" ? a - b : a * b;
  }
  if (name == "**") {
    expect(a != 0 || b >= 0, "0 cannot be raised to a negative power");
    expect(a >= 0 || b == std::floor(b), "a root of a negative number is not supported");
    return std::pow(a, b);
  }
  expect(b != 0, "division by zero");
  if (name == "/") {
    return a / b;
  }
  double rest = std::fmod(a, b);
  rest += rest != 0 && (rest < 0) != (b < 0) ? b : 0;
  return name == "%" ? rest : std::floor((a - rest) / b + 0.5);
}

template <typename Container>
Container repeated(const Container& what, std::int64_t times, std::size_t unit, Budget& budget) {
  Container result;
  if (times <= 0 || what.empty()) {
    return result;
  }
  expect(static_cast<std::uint64_t>(times) <= kMaxLength / what.size(), "a text or list grows above {} elements",
         kMaxLength);
  budget.charge(what.size() * static_cast<std::size_t>(times) * unit);
  for (std::int64_t i = 0; i < times; ++i) {
    result.insert(result.end(), what.begin(), what.end());
  }
  return result;
}

bool is_sequence_of_elements(const Value& value) {
  return value.sequence() != nullptr && value.sequence()->kind <= SequenceKind::kTuple;
}

std::optional<Value> added(const Value& a, const Value& b, Budget& budget) {
  if (a.text() != nullptr && b.text() != nullptr) {
    budget.charge(a.text()->size() + b.text()->size());
    expect(a.text()->size() + b.text()->size() <= kMaxLength, "a text grows above {} characters", kMaxLength);
    return Value(*a.text() + *b.text());
  }
  if (is_sequence_of_elements(a) && is_sequence_of_elements(b) && a.sequence()->kind == b.sequence()->kind) {
    Values items = elements(a, budget);
    const Values more = elements(b, budget);
    items.insert(items.end(), more.begin(), more.end());
    return Value::sequence(a.sequence()->kind, std::move(items));
  }
  return std::nullopt;
}

std::optional<Value> multiplied(const Value& what, const Value& times, Budget& budget) {
  const auto count = times.integer();
  if (!count) {
    return std::nullopt;
  }
  if (what.text() != nullptr) {
    return Value(repeated(*what.text(), *count, 1, budget));
  }
  if (is_sequence_of_elements(what)) {
    return Value::sequence(what.sequence()->kind, repeated(what.sequence()->items, *count, 8, budget));
  }
  return std::nullopt;
}

bool contains(const Value& in, const Value& what, Budget& budget) {
  if (const Text* const text = in.text()) {
    expect_defined(what);
    expect(what.text() != nullptr, "a {} is looked for in a text, expected a text", what.type());
    budget.charge_search(text->size(), what.text()->size());
    return text->find(*what.text()) != Text::npos;
  }
  if (const Dict* const dict = in.dict()) {
    budget.charge(dict->entries.size());
    return dict->find(what) != nullptr;
  }
  const Values items = elements(in, budget);
  return std::ranges::any_of(items, [&](const Value& item) { return equal(item, what, budget); });
}

// The places that a slice takes, as Python's slice.indices() counts them.
std::vector<std::size_t> places_of(const Slice& slice, std::size_t size) {
  const auto number = [](const Value& value) -> std::optional<std::int64_t> {
    if (value.is_none()) {
      return std::nullopt;
    }
    expect_defined(value);
    expect(value.integer().has_value(), "a slice has a {}, expected integers", value.type());
    return value.integer();
  };
  const auto length = static_cast<std::int64_t>(size);
  const std::int64_t step = number(slice.step).value_or(1);
  expect(step != 0, "the step of a slice is 0");
  const std::int64_t lowest = step > 0 ? 0 : -1;
  const std::int64_t highest = step > 0 ? length : length - 1;
  const auto place = [&](const Value& value, std::int64_t otherwise) {
    const auto given = number(value);
    if (!given) {
      return otherwise;
    }
    return std::clamp(*given < 0 ? *given + length : *given, lowest, highest);
  };
  const std::int64_t begin = place(slice.begin, step > 0 ? lowest : highest);
  const std::int64_t end = place(slice.end, step > 0 ? highest : lowest);
  std::vector<std::size_t> places;
  for (std::int64_t i = begin; step > 0 ? i < end : i > end;) {
    places.push_back(static_cast<std::size_t>(i));
    if (__builtin_add_overflow(i, step, &i)) {
      break;
    }
  }
  return places;
}

}  // namespace

Value binary(std::string_view name, const Value& a, const Value& b, Budget& budget) {
  expect_defined(a);
  expect_defined(b);
  if (const auto x = a.integer(), y = b.integer(); x && y) {
    return integer_result(name, *x, *y);
  }
  if (const auto x = a.number(), y = b.number(); x && y) {
    return float_result(name, *x, *y);
  }
  std::optional<Value> result;
  if (name == "+") {
    result = added(a, b, budget);
  } else if (name == "*") {
    result = multiplied(a, b, budget);
    result = result ? std::move(result) : multiplied(b, a, budget);
  }
  expect(name != "%" || a.text() == nullptr, "% on texts is not supported");
  expect(result.has_value(), "{} is not defined for a {} and a {}", name, a.type(), b.type());
  return *result;
}

Value signed_value(std::string_view name, const Value& value) {
  expect_defined(value);
  if (const auto number = value.integer()) {
    return name == "+" ? *number : whole_result(*number == INT64_MIN, *number == INT64_MIN ? 0 : -*number);
  }
  expect(value.number().has_value(), "{} is not defined for a {}", name, value.type());
  return name == "+" ? *value.number() : -*value.number();
}

bool compare(std::string_view name, const Value& a, const Value& b, Budget& budget) {
  if (name == "in" || name == "not in") {
    return contains(b, a, budget) == (name == "in");
  }
  if (name == "==" || name == "!=") {
    return equal(a, b, budget) == (name == "==");
  }
  const auto order = compared(a, b, budget);
  if (!order) {
    return false;
  }
  return name == "<" ? *order < 0 : name == "<=" ? *order <= 0 : name == ">" ? *order > 0 : *order >= 0;
}

Value attribute_of(const Value& of, std::string_view name, Budget& budget) {
  expect_defined(of);
  if (const Loop* const loop = of.loop()) {
    return loop_attribute(*loop, name);
  }
  if (const Namespace* const names = of.name_space()) {
    const auto found = std::ranges::find(names->entries, name, &std::pair<std::string, Value>::first);
    return found != names->entries.end() ? found->second
                                         : Value::undefined(fmt::format("the namespace has no {}", name));
  }
  if (const auto method = method_of(of, name, budget)) {
    return *method;
  }
  if (const Dict* const dict = of.dict()) {
    budget.charge(dict->entries.size());
    if (const Value* const found = dict->find(name)) {
      return *found;
    }
  }
  return Value::undefined(fmt::format("a {} has no {}", of.type(), in_quotes(name)));
}

Value item_of(const Value& of, const Value& key, Budget& budget) {
  expect_defined(of);
  if (const Dict* const dict = of.dict()) {
    budget.charge(dict->entries.size());
    if (const Value* const found = dict->find(key)) {
      return *found;
    }
  }
  if (const auto index = key.integer()) {
    const auto size = static_cast<std::int64_t>(length(of).value_or(0));
    const bool is_inside = *index >= -size && *index < size;
    const auto place = static_cast<std::size_t>(*index < 0 ? *index + size : *index);
    if (of.text() != nullptr && is_inside) {
      return Text(1, (*of.text())[place]);
    }
    if (of.sequence() != nullptr && of.sequence()->kind <= SequenceKind::kRange && is_inside) {
      return of.sequence()->items[place];
    }
  }
  if (key.text() != nullptr && of.dict() == nullptr) {
    return attribute_of(of, to_utf8(*key.text()), budget);
  }
  if (key.text() != nullptr) {
    if (const auto method = method_of(of, to_utf8(*key.text()), budget)) {
      return *method;
    }
  }
  return Value::undefined(fmt::format("a {} has no element {}", of.type(), in_quotes(to_utf8(to_str(key, budget)))));
}

Value slice_of(const Value& of, const Slice& slice, Budget& budget) {
  expect_defined(of);
  if (const Text* const text = of.text()) {
    const auto places = places_of(slice, text->size());
    budget.charge(places.size());
    Text part;
    for (const std::size_t place : places) {
      part.push_back((*text)[place]);
    }
    return part;
  }
  const Sequence* const sequence = of.sequence();
  expect(sequence != nullptr && sequence->kind <= SequenceKind::kRange, "a slice is taken of a {}", of.type());
  const auto places = places_of(slice, sequence->items.size());
  budget.charge(places.size() * 8);
  Values items;
  for (const std::size_t place : places) {
    items.push_back(sequence->items[place]);
  }
  return Value::sequence(sequence->kind, std::move(items));
}

Value call(const Value& function, const Arguments& arguments) {
  expect_defined(function);
  expect(function.callable() != nullptr, "a {} is called, expected a function", function.type());
  return function.callable()->call(arguments);
}

}  // namespace lockstep::jinja
