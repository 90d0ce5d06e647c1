#include "trainer/config_keys.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <charconv>
#include <cmath>
#include <type_traits>

namespace lockstep {
namespace {

template <typename E>
struct Names;
template <>
struct Names<ModelFamily> {
  static constexpr std::array<std::string_view, 5> value = {"gpt2", "llama", "mistral", "qwen2", "qwen3"};
};
template <>
struct Names<RopeScaling> {
  static constexpr std::array<std::string_view, 3> value = {"none", "linear", "llama3"};
};
template <>
struct Names<Precision> {
  static constexpr std::array<std::string_view, 3> value = {"fp32", "bf16", "fp16"};
};
template <>
struct Names<Determinism> {
  static constexpr std::array<std::string_view, 2> value = {"elastic", "fixed"};
};
template <>
struct Names<Recompute> {
  static constexpr std::array<std::string_view, 3> value = {"none", "attention", "block"};
};
template <>
struct Names<TuneMethod> {
  static constexpr std::array<std::string_view, 3> value = {"full", "freeze", "lora"};
};
template <>
struct Names<TuneBias> {
  static constexpr std::array<std::string_view, 3> value = {"none", "all", "lora_only"};
};
template <>
struct Names<Packing> {
  static constexpr std::array<std::string_view, 3> value = {"none", "q8_0", "nf4"};
};
template <>
struct Names<PreferenceLoss> {
  static constexpr std::array<std::string_view, 3> value = {"sigmoid", "hinge", "ipo"};
};
template <>
struct Names<DeviceWish> {
  static constexpr std::array<std::string_view, 3> value = {"auto", "cpu", "cuda"};
};
template <>
struct Names<OptimizerName> {
  static constexpr std::array<std::string_view, 1> value = {"adamw"};
};
template <>
struct Names<ScheduleName> {
  static constexpr std::array<std::string_view, 4> value = {"constant", "linear", "cosine", "wsd"};
};

template <typename E>
std::string_view enum_name(E value) {
  return Names<E>::value.at(static_cast<std::size_t>(value));
}

template <typename T>
bool parse_number(std::string_view text, T& value) {
  if (text.starts_with('+')) {
    text.remove_prefix(1);
  }
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if constexpr (std::is_floating_point_v<T>) {
    if (!std::isfinite(value)) {
      return false;
    }
  }
  return error == std::errc() && end == text.data() + text.size();
}

template <typename T>
bool parse_value(const ConfigKey& key, std::string_view text, T& value) {
  if constexpr (std::is_same_v<T, std::string>) {
    bool known = key.choices.empty();
    for (const std::string_view choice : key.choices) {
      known = known || choice == text;
    }
    value = text;
    return known;
  } else if constexpr (std::is_same_v<T, bool>) {
    value = text == "true";
    return text == "true" || text == "false";
  } else if constexpr (std::is_enum_v<T>) {
    for (std::size_t i = 0; i < Names<T>::value.size(); ++i) {
      if (Names<T>::value[i] == text) {
        value = static_cast<T>(i);
        return true;
      }
    }
    return false;
  } else {
    if (!key.word_for_zero.empty() && text == key.word_for_zero) {
      value = 0;
      return true;
    }
    return parse_number(text, value) && key.range.contains(static_cast<double>(value));
  }
}

std::string range_text(const ConfigRange& range) {
  const bool has_min = range.min != -std::numeric_limits<double>::infinity();
  const bool has_max = range.max != std::numeric_limits<double>::infinity();
  if (has_min && has_max) {
    if (range.min == range.max) {
      return fmt::format(" equal to {}", range.min);
    }
    return fmt::format(" from {} {} {}", range.min, range.excludes_max ? "to below" : "to", range.max);
  }
  return has_min ? fmt::format(" {} {}", range.excludes_min ? "above" : "of at least", range.min) : "";
}

template <typename T>
std::string expected_of(const ConfigKey& key) {
  if constexpr (std::is_same_v<T, std::string>) {
    return key.choices.empty() ? "a text" : fmt::format("one of {}", fmt::join(key.choices, ", "));
  } else if constexpr (std::is_same_v<T, bool>) {
    return "true or false";
  } else if constexpr (std::is_enum_v<T>) {
    return fmt::format("{}{}", Names<T>::value.size() > 1 ? "one of " : "", fmt::join(Names<T>::value, ", "));
  } else if constexpr (std::is_same_v<T, std::array<double, 2>>) {
    return fmt::format("two numbers{}", range_text(key.range));
  } else {
    const char* type = std::is_same_v<T, double> ? "a number" : "an integer";
    const std::string number = type + range_text(key.range);
    return key.word_for_zero.empty() ? number : fmt::format("{} or {}", key.word_for_zero, number);
  }
}

template <typename T>
std::string text_of(const ConfigKey& key, const T& value) {
  if constexpr (std::is_same_v<T, std::string>) {
    return value;
  } else if constexpr (std::is_enum_v<T>) {
    return std::string(enum_name(value));
  } else if constexpr (std::is_same_v<T, std::array<double, 2>>) {
    return fmt::format("[{}, {}]", value[0], value[1]);
  } else {
    return !key.word_for_zero.empty() && value == T{} ? std::string(key.word_for_zero) : fmt::format("{}", value);
  }
}

// Parses into a copy first, so that a refused text changes nothing.
template <typename T>
bool assign(const ConfigKey& key, std::string_view text, T& target) {
  T value = target;
  if (!parse_value(key, text, value)) {
    return false;
  }
  target = value;
  return true;
}

}  // namespace

std::string_view name_of(ModelFamily value) { return enum_name(value); }
std::string_view name_of(RopeScaling value) { return enum_name(value); }
std::string_view name_of(Precision value) { return enum_name(value); }
DType dtype_of(Precision value) {
  return value == Precision::kFp32 ? DType::kF32 : value == Precision::kBf16 ? DType::kBF16 : DType::kF16;
}
std::string_view name_of(Determinism value) { return enum_name(value); }
std::string_view name_of(Recompute value) { return enum_name(value); }
std::string_view name_of(TuneMethod value) { return enum_name(value); }
std::string_view name_of(TuneBias value) { return enum_name(value); }
std::string_view name_of(Packing value) { return enum_name(value); }
std::string_view name_of(PreferenceLoss value) { return enum_name(value); }
std::string_view name_of(DeviceWish value) { return enum_name(value); }
std::string_view name_of(OptimizerName value) { return enum_name(value); }
std::string_view name_of(ScheduleName value) { return enum_name(value); }

std::string_view section_of(const ConfigKey& key) { return key.name.substr(0, key.name.find('.')); }
std::string_view leaf_of(const ConfigKey& key) { return key.name.substr(key.name.find('.') + 1); }

std::string expected_text(const ConfigKey& key) {
  Config scratch;
  return std::visit([&](auto* slot) { return expected_of<std::remove_pointer_t<decltype(slot)>>(key); },
                    key.slot(scratch));
}

std::string value_text(const ConfigKey& key, const Config& config) {
  Config copy = config;
  return std::visit([&](auto* slot) { return text_of(key, *slot); }, key.slot(copy));
}

bool assign_scalar(const ConfigKey& key, std::string_view text, Config& config) {
  return std::visit(
      [&](auto* slot) {
        if constexpr (std::is_same_v<decltype(slot), std::array<double, 2>*>) {
          return false;
        } else {
          return assign(key, text, *slot);
        }
      },
      key.slot(config));
}

bool assign_pair(const ConfigKey& key, std::string_view first, std::string_view second, Config& config) {
  std::array<double, 2> values = {};
  if (!parse_number(first, values[0]) || !parse_number(second, values[1]) || !key.range.contains(values[0]) ||
      !key.range.contains(values[1])) {
    return false;
  }
  *std::get<std::array<double, 2>*>(key.slot(config)) = values;
  return true;
}

bool is_pair(const ConfigKey& key) {
  Config scratch;
  return std::holds_alternative<std::array<double, 2>*>(key.slot(scratch));
}

}  // namespace lockstep
