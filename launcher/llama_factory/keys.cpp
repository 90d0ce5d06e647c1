#include "launcher/llama_factory/keys.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <system_error>

#include "base/error.h"

namespace lockstep::llama_factory {

Keys::Keys(const YAML::Node& document, std::string origin) : origin_(std::move(origin)) {
  for (const auto& entry : document) {
    const auto name = entry.first.as<std::string>();
    require(values_.emplace(name, text_of(name, entry.second)).second, "{}: {} stands here for the second time",
            origin_, name);
  }
}

std::string Keys::text_of(const std::string& name, const YAML::Node& node) const {
  if (node.IsNull()) {
    return {};
  }
  if (node.IsScalar()) {
    const std::string text = node.Scalar();
    return text == "null" || text == "None" || text == "none" ? std::string() : text;
  }
  require(node.IsSequence(), "{}: {} is a map, expected a value or a list", origin_, name);
  std::string list;
  for (const YAML::Node& item : node) {
    require(item.IsScalar(), "{}: {} holds a list or map, expected values", origin_, name);
    list += list.empty() ? "" : ",";
    list += item.Scalar();
  }
  return list;
}

std::optional<std::string> Keys::find(const std::string& key) {
  asked_.insert(key);
  const auto found = values_.find(key);
  return found == values_.end() || found->second.empty() ? std::nullopt : std::optional(found->second);
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
  std::string lower = *value;
  std::ranges::transform(lower, lower.begin(),
                         [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  require(lower == "true" || lower == "false", "{}: {} is {}, expected true or false", origin_, key, *value);
  return lower == "true";
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

void Keys::check_all_known() const {
  for (const auto& [key, value] : values_) {
    require(asked_.contains(key) || value.empty(), "{}: {} is {}, which is not known here; remove it to go on without",
            origin_, key, value);
  }
}

}  // namespace lockstep::llama_factory
