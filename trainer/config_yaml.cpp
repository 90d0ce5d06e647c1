// Reading and printing configurations as YAML.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <set>

#include "base/error.h"
#include "base/file.h"
#include "base/nearest.h"
#include "trainer/config_keys.h"

namespace lockstep {
namespace {

// "gpt2.yaml:12"; the file alone for what has no place in it.
std::string place_of(const std::string& origin, const YAML::Mark& mark) {
  return mark.is_null() ? origin : fmt::format("{}:{}", origin, mark.line + 1);
}

const ConfigKey* find_key(std::string_view name) {
  const auto& keys = config_keys();
  const auto found = std::find_if(keys.begin(), keys.end(), [&](const ConfigKey& key) { return key.name == name; });
  return found == keys.end() ? nullptr : &*found;
}

// "device: cuda" is short for "device: {kind: cuda}".
const ConfigKey* short_form(const std::string& section) { return find_key(section + ".kind"); }

std::vector<std::string> section_names() {
  std::vector<std::string> names;
  for (const ConfigKey& key : config_keys()) {
    if (names.empty() || names.back() != section_of(key)) {
      names.emplace_back(section_of(key));
    }
  }
  return names;
}

[[noreturn]] void fail_unknown_key(const std::string& place, const std::string& name) {
  const std::size_t dot = name.find('.');
  const std::string section = dot == std::string::npos ? "" : name.substr(0, dot);
  const std::string leaf = dot == std::string::npos ? name : name.substr(dot + 1);
  std::vector<std::string> names;
  std::vector<std::string> leaves;
  for (const ConfigKey& key : config_keys()) {
    // The right word in the wrong section is a more likely slip than many wrong letters.
    if (leaf_of(key) == leaf) {
      fail(ErrorCode::kUsage, "{}: {} is not a key; did you mean {}?", place, name, key.name);
    }
    names.emplace_back(key.name);
    if (section_of(key) == section) {
      leaves.emplace_back(leaf_of(key));
    }
  }
  if (leaves.empty()) {
    fail(ErrorCode::kUsage, "{}: {} is not a key{}", place, name, did_you_mean(name, names));
  }
  const auto meant = nearest(leaf, leaves);
  const std::string hint = meant ? fmt::format("did you mean {}.{}?", section, *meant)
                                 : fmt::format("{} has {}", section, fmt::join(leaves, ", "));
  fail(ErrorCode::kUsage, "{}: {} is not a key; {}", place, name, hint);
}

[[noreturn]] void fail_value(const std::string& place, const ConfigKey& key, const std::string& found) {
  fail(ErrorCode::kUsage, "{}: {} is {}; expected {}", place, key.name, found.empty() ? "empty" : found,
       expected_text(key));
}

void assign_node(const ConfigKey& key, const YAML::Node& node, const std::string& place, Config& config) {
  if (is_pair(key)) {
    const bool two_scalars = node.IsSequence() && node.size() == 2 && node[0].IsScalar() && node[1].IsScalar();
    if (!two_scalars || !assign_pair(key, node[0].Scalar(), node[1].Scalar(), config)) {
      fail_value(place, key, node.IsScalar() ? node.Scalar() : YAML::Dump(node));
    }
    return;
  }
  if (!node.IsScalar()) {
    fail_value(place, key, node.IsMap() ? "a mapping" : node.IsSequence() ? "a list" : "empty");
  }
  if (!assign_scalar(key, node.Scalar(), config)) {
    fail_value(place, key, node.Scalar());
  }
}

// The key of a mapping's entry as a text.
std::string entry_name(const YAML::Node& node, const std::string& origin) {
  require(node.IsScalar(), "{}: expected a key, found a {}", place_of(origin, node.Mark()),
          node.IsMap() ? "mapping" : "list");
  return node.Scalar();
}

void read_section(const std::string& section, const YAML::Node& node, const std::string& origin,
                  std::set<std::string>& seen, Config& config) {
  require(node.IsMap(), "{}: {} is {}; expected keys and values", place_of(origin, node.Mark()), section,
          node.IsScalar() ? node.Scalar() : "a list");
  for (const auto& entry : node) {
    const std::string name = section + "." + entry_name(entry.first, origin);
    const std::string place = place_of(origin, entry.first.Mark());
    const ConfigKey* key = find_key(name);
    if (key == nullptr) {
      fail_unknown_key(place, name);
    }
    require(seen.insert(name).second, "{}: {} stands here for the second time", place, name);
    assign_node(*key, entry.second, place_of(origin, entry.second.Mark()), config);
  }
}

void read_document(const YAML::Node& root, const std::string& origin, std::set<std::string>& seen, Config& config) {
  if (root.IsNull()) {
    return;
  }
  require(root.IsMap(), "{}: expected sections such as model: and train:, found a {}", place_of(origin, root.Mark()),
          root.IsSequence() ? "list" : "text");
  const std::vector<std::string> sections = section_names();
  std::set<std::string> seen_sections;
  for (const auto& entry : root) {
    const std::string name = entry_name(entry.first, origin);
    const std::string place = place_of(origin, entry.first.Mark());
    require(std::find(sections.begin(), sections.end(), name) != sections.end(), "{}: {} is not a section{}", place,
            name, did_you_mean(name, sections));
    require(seen_sections.insert(name).second, "{}: {} stands here for the second time", place, name);
    if (const ConfigKey* key = short_form(name); key != nullptr && entry.second.IsScalar()) {
      seen.insert(std::string(key->name));
      assign_node(*key, entry.second, place_of(origin, entry.second.Mark()), config);
      continue;
    }
    if (!entry.second.IsNull()) {
      read_section(name, entry.second, origin, seen, config);
    }
  }
}

void apply_override(const std::string& text, std::set<std::string>& seen, Config& config) {
  const std::string place = "--set " + text;
  const std::size_t equals = text.find('=');
  require(equals != std::string::npos, "{}: expected key=value, such as model.layers=12", place);
  const std::string name = text.substr(0, equals);
  const std::string value = text.substr(equals + 1);
  const ConfigKey* key = find_key(name);
  key = key == nullptr ? short_form(name) : key;
  if (key == nullptr) {
    fail_unknown_key(place, name);
  }
  seen.insert(std::string(key->name));
  if (is_pair(*key)) {
    try {
      assign_node(*key, YAML::Load(value), "--set", config);
    } catch (const YAML::Exception&) {
      fail_value("--set", *key, value);
    }
  } else if (!assign_scalar(*key, value, config)) {
    fail_value("--set", *key, value);
  }
}

void check_required(const std::set<std::string>& seen, const std::string& origin, const Config& config) {
  require(config.tune.method == TuneMethod::kFull || !config.model.from.empty(),
          "{}: tune.method is {}, but model.from names no model whose weights stay as they are", origin,
          name_of(config.tune.method));
  // Or a forgotten method trained everything.
  const auto tunes = std::ranges::find_if(seen, [](const std::string& name) { return name.starts_with("tune."); });
  require(tunes == seen.end() || seen.contains("tune.method"), "{}: {} is given, but tune.method is not; expected {}",
          origin, *tunes, expected_text(*find_key("tune.method")));
  for (const ConfigKey& key : config_keys()) {
    const bool comes_with_weights = section_of(key) == "model" && !config.model.from.empty();
    require(!key.required || comes_with_weights || seen.contains(std::string(key.name)),
            "{}: {} is missing: {}; expected {}", origin, key.name, key.help, expected_text(key));
  }
}

}  // namespace

Config load_config(const std::filesystem::path& path, std::span<const std::string> overrides) {
  require(std::filesystem::exists(path), "{} does not exist", path.string());
  return parse_config(read_file(path), path.string(), overrides);
}

Config parse_config(std::string_view yaml, const std::string& origin, std::span<const std::string> overrides) {
  Config config;
  std::set<std::string> seen;
  try {
    read_document(YAML::Load(std::string(yaml)), origin, seen, config);
  } catch (const YAML::Exception& error) {
    fail(ErrorCode::kUsage, "{}: this is not YAML: {}", place_of(origin, error.mark), error.msg);
  }
  for (const std::string& text : overrides) {
    apply_override(text, seen, config);
  }
  if (config.run.name.empty()) {
    config.run.name = std::filesystem::path(origin).stem().string();
  }
  check_required(seen, origin, config);
  check_consistency(config, origin);
  return config;
}

std::string to_yaml(const Config& config) {
  std::string text;
  std::string_view section;
  for (const ConfigKey& key : config_keys()) {
    if (section_of(key) != section) {
      section = section_of(key);
      text += fmt::format("{}:\n", section);
    }
    std::string value = value_text(key, config);
    Config scratch;
    if (std::holds_alternative<std::string*>(key.slot(scratch))) {
      YAML::Emitter quoted;
      quoted << YAML::DoubleQuoted << value;
      value = quoted.c_str();
    }
    text += fmt::format("  {}: {}\n", leaf_of(key), value);
  }
  return text;
}

std::string config_reference() {
  const Config defaults;
  std::string text;
  std::string_view section;
  for (const ConfigKey& key : config_keys()) {
    if (section_of(key) != section) {
      section = section_of(key);
      text += fmt::format("{}{}:\n", text.empty() ? "" : "\n", section);
    }
    const std::string value = value_text(key, defaults);
    const std::string shown = key.required ? "(required)" : value.empty() ? "\"\"" : value;
    text +=
        fmt::format("  {:<17} {:<13} {}; {}\n", fmt::format("{}:", leaf_of(key)), shown, key.help, expected_text(key));
  }
  return text;
}

}  // namespace lockstep
