// Filters of numbers, and those that read one.
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>

#include "data/chat/jinja/filters_impl.h"
#include "data/chat/jinja/operators.h"
#include "data/text/unicode.h"

namespace lockstep::jinja {
namespace {

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

}  // namespace

Filters number_filters() { return {{"int", to_int}, {"float", to_float}, {"abs", absolute}, {"round", round_filter}}; }

}  // namespace lockstep::jinja
