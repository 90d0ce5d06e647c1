#include "launcher/llama_factory/keys.h"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <system_error>

#include "base/error.h"

namespace lockstep::llama_factory {

namespace {

// On one line, as YAML has it in braces and brackets.
std::string flow_of(const YAML::Node& node) {
  if (node.IsNull() || node.IsScalar()) {
    return node.IsNull() ? "null" : node.Scalar();
  }
  std::string text;
  for (const auto& item : node) {
    text += text.empty() ? "" : ", ";
    text += node.IsMap() ? fmt::format("{}: {}", flow_of(item.first), flow_of(item.second)) : flow_of(item);
  }
  return node.IsMap() ? "{" + text + "}" : "[" + text + "]";
}

}  // namespace

std::optional<bool> parse_flag(std::string text) {
  std::ranges::transform(text, text.begin(),
                         [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  if (text == "true" || text == "yes" || text == "on") {
    return true;
  }
  return text == "false" || text == "no" || text == "off" ? std::optional(false) : std::nullopt;
}

Keys::Keys(const YAML::Node& document, std::string origin) : origin_(std::move(origin)) {
  for (const auto& entry : document) {
    const auto name = entry.first.as<std::string>();
    require(values_.emplace(name, value_of(entry.second)).second, "{}: {} stands here for the second time", origin_,
            name);
  }
}

Keys::Value Keys::value_of(const YAML::Node& node) {
  if (node.IsNull()) {
    return {};
  }
  if (node.IsScalar()) {
    const std::string text = node.Scalar();
    return {text == "null" || text == "None" || text == "none" ? std::string() : text, {}};
  }
  if (node.IsMap()) {
    return {flow_of(node), "is a map, expected a value or a list"};
  }
  std::string list;
  for (const YAML::Node& item : node) {
    if (!item.IsScalar()) {
      return {flow_of(node), "holds a list or map, expected values"};
    }
    list += list.empty() ? "" : ",";
    list += item.Scalar();
  }
  return {list, {}};
}

std::optional<std::string> Keys::find_anything(const std::string& key) {
  asked_.insert(key);
  const auto found = values_.find(key);
  return found == values_.end() || found->second.text.empty() ? std::nullopt : std::optional(found->second.text);
}

std::optional<std::string> Keys::find(const std::string& key) {
  const auto found = values_.find(key);
  require(found == values_.end() || found->second.problem.empty(), "{}: {} {}", origin_, key,
          found == values_.end() ? "" : found->second.problem);
  return find_anything(key);
}

double Keys::number(const std::string& key, double otherwise) {
  const auto value = find(key);
  if (!value) {
    return otherwise;
  }
  double number = 0;
  const auto [end, error] = std::from_chars(value->data(), value->data() + value->size(), number);
  require(error == std::errc() && end == value->data() + value->size(), "{}: {} is {}, expected a number", origin_, key,
          *value);
  return number;
}

std::int64_t Keys::whole(const std::string& key, std::int64_t otherwise) {
  const double value = number(key, static_cast<double>(otherwise));
  require(std::abs(value) < 1e15 && value == std::floor(value), "{}: {} is {}, expected a whole number", origin_, key,
          value);
  return static_cast<std::int64_t>(value);
}

std::int64_t Keys::whole_from(std::int64_t least, const std::string& key, std::int64_t otherwise) {
  const std::int64_t value = whole(key, otherwise);
  require(value >= least, "{}: {} is {}, expected at least {}", origin_, key, value, least);
  return value;
}

double Keys::number_from(double least, const std::string& key, double otherwise) {
  const double value = number(key, otherwise);
  require(value >= least, "{}: {} is {}, expected at least {}", origin_, key, value, least);
  return value;
}

bool Keys::flag(const std::string& key, bool otherwise) {
  const auto value = find(key);
  if (!value) {
    return otherwise;
  }
  const std::optional<bool> flag = parse_flag(*value);
  require(flag.has_value(), "{}: {} is {}, expected true or false", origin_, key, *value);
  return *flag;
}

std::vector<std::string> Keys::list(const std::string& key) {
  std::vector<std::string> items;
  const std::string value = text(key, "");
  for (std::size_t begin = 0; begin < value.size();) {
    const std::size_t end = std::min(value.find(',', begin), value.size());
    std::string item = value.substr(begin, end - begin);
    item.erase(std::min(item.size(), item.find_last_not_of(' ') + 1));
    item.erase(0, std::min(item.size(), item.find_first_not_of(' ')));
    if (!item.empty()) {
      items.push_back(item);
    }
    begin = end + 1;
  }
  return items;
}

void Keys::refuse_unless(const std::string& key, const std::string& expected, const std::string& why) {
  const std::string value = text(key, expected);
  require(value == expected, "{}: {} is {}, which cannot be honoured: {}", origin_, key, value, why);
}

void Keys::refuse_unless_flag(const std::string& key, bool expected, const std::string& why) {
  require(flag(key, expected) == expected, "{}: {} is {}, which cannot be honoured: {}", origin_, key, text(key, ""),
          why);
}

void Keys::check_all_known() const {
  for (const auto& [key, value] : values_) {
    require(asked_.contains(key) || value.text.empty(),
            "{}: {} is {}, which is not known here; remove it to go on without", origin_, key, value.text);
  }
}

}  // namespace lockstep::llama_factory
