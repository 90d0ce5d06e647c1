// What stands behind `is`.
#include <algorithm>
#include <map>

#include "data/chat/jinja/bound_arguments.h"
#include "data/chat/jinja/filters.h"
#include "data/chat/jinja/operators.h"

namespace lockstep::jinja {
namespace {

struct Question {
  std::string_view name;
  const Arguments& arguments;
  Budget& budget;

  [[nodiscard]] const Value& value() const { return arguments.positional.front(); }
};
using Test = bool (*)(const Question&);

// A test without arguments.
template <bool (*kTest)(const Value&)>
bool plain(const Question& question) {
  static_cast<void>(BoundArguments(question.name, question.arguments, {"value"}, 1));
  return kTest(question.value());
}

bool is_defined(const Value& v) { return !v.is_undefined(); }
bool is_undefined(const Value& v) { return v.is_undefined(); }
bool is_none(const Value& v) { return v.is_none(); }
bool is_string(const Value& v) { return v.text() != nullptr; }
bool is_mapping(const Value& v) { return v.dict() != nullptr; }
bool is_callable(const Value& v) { return v.callable() != nullptr; }
bool is_boolean(const Value& v) { return v.is_bool(); }
bool is_true(const Value& v) { return v.is_bool() && v.truth(); }
bool is_false(const Value& v) { return v.is_bool() && !v.truth(); }
bool is_number(const Value& v) { return v.number().has_value(); }
bool is_integer(const Value& v) { return v.get_if<std::int64_t>() != nullptr; }
bool is_float(const Value& v) { return v.get_if<double>() != nullptr; }
bool is_iterable(const Value& v) {
  return v.text() != nullptr || v.sequence() != nullptr || v.dict() != nullptr || v.is_undefined() ||
         v.loop() != nullptr;
}
bool is_sequence(const Value& v) {
  return v.text() != nullptr || v.dict() != nullptr || v.is_undefined() ||
         (v.sequence() != nullptr && v.sequence()->kind <= SequenceKind::kRange);
}

std::int64_t whole(const Question& question) {
  const auto number = question.value().integer();
  expect(number.has_value(), "{} is asked of a {}, expected an integer", question.name, question.value().type());
  return *number;
}
bool is_odd(const Question& question) { return whole(question) % 2 != 0; }
bool is_even(const Question& question) { return whole(question) % 2 == 0; }
bool is_divisible(const Question& question) {
  const BoundArguments arguments(question.name, question.arguments, {"value", "num"}, 2);
  const std::int64_t by = arguments.integer(1, 1);
  expect(by != 0, "division by zero");
  return by == -1 || whole(question) % by == 0;
}

bool is_lower(const Question& question) {
  const Text text = to_str(question.value(), question.budget);
  return text == lower(text) && text != upper(text);
}
bool is_upper(const Question& question) {
  const Text text = to_str(question.value(), question.budget);
  return text == upper(text) && text != lower(text);
}

bool is_same(const Question& question) {
  const BoundArguments arguments(question.name, question.arguments, {"value", "other"}, 2);
  return question.value().is(arguments[1]);
}

// Names of comparisons, and the operators.
bool is_compared(const Question& question) {
  static const std::map<std::string_view, std::string_view> kOperators = {
      {"eq", "=="}, {"equalto", "=="}, {"ne", "!="},         {"lt", "<"},  {"lessthan", "<"},
      {"le", "<="}, {"gt", ">"},       {"greaterthan", ">"}, {"ge", ">="}, {"in", "in"}};
  const BoundArguments arguments(question.name, question.arguments, {"value", "other"}, 2);
  const auto found = kOperators.find(question.name);
  return compare(found == kOperators.end() ? question.name : found->second, question.value(), arguments[1],
                 question.budget);
}

bool names_filter(const Question& question) { return is_filter(to_utf8(to_str(question.value(), question.budget))); }
bool names_test(const Question& question) { return is_test(to_utf8(to_str(question.value(), question.budget))); }

const std::map<std::string_view, Test>& all_tests() {
  static const std::map<std::string_view, Test> kTests = {{"defined", plain<is_defined>},
                                                          {"undefined", plain<is_undefined>},
                                                          {"none", plain<is_none>},
                                                          {"string", plain<is_string>},
                                                          {"mapping", plain<is_mapping>},
                                                          {"callable", plain<is_callable>},
                                                          {"boolean", plain<is_boolean>},
                                                          {"true", plain<is_true>},
                                                          {"false", plain<is_false>},
                                                          {"number", plain<is_number>},
                                                          {"integer", plain<is_integer>},
                                                          {"float", plain<is_float>},
                                                          {"iterable", plain<is_iterable>},
                                                          {"sequence", plain<is_sequence>},
                                                          {"odd", is_odd},
                                                          {"even", is_even},
                                                          {"divisibleby", is_divisible},
                                                          {"lower", is_lower},
                                                          {"upper", is_upper},
                                                          {"sameas", is_same},
                                                          {"eq", is_compared},
                                                          {"equalto", is_compared},
                                                          {"==", is_compared},
                                                          {"ne", is_compared},
                                                          {"!=", is_compared},
                                                          {"lt", is_compared},
                                                          {"lessthan", is_compared},
                                                          {"<", is_compared},
                                                          {"le", is_compared},
                                                          {"<=", is_compared},
                                                          {"gt", is_compared},
                                                          {"greaterthan", is_compared},
                                                          {">", is_compared},
                                                          {"ge", is_compared},
                                                          {">=", is_compared},
                                                          {"in", is_compared},
                                                          {"filter", names_filter},
                                                          {"test", names_test}};
  return kTests;
}

}  // namespace

bool is_test(std::string_view name) { return all_tests().contains(name); }

bool apply_test(std::string_view name, const Arguments& arguments, Budget& budget) {
  const auto found = all_tests().find(name);
  expect(found != all_tests().end(), "the test {} is not supported", name);
  budget.charge(1);
  return found->second({found->first, arguments, budget});
}

}  // namespace lockstep::jinja
