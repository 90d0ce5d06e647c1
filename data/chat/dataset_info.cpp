#include "data/chat/dataset_info.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "base/file.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kInfoName = "dataset_info.json";
constexpr const char* kUrls[] = {"hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name"};

// One entry of the file, and how messages call it.
struct Entry {
  const json& object;
  std::string name;  // `data/dataset_info.json: "mine"`

  [[nodiscard]] std::string text(const char* key, std::string otherwise) const {
    const auto found = object.find(key);
    if (found == object.end() || found->is_null()) {
      return otherwise;
    }
    require(found->is_string(), "{}: {} is {}, expected a text", name, key, found->dump());
    return found->get<std::string>();
  }
  void allow(std::initializer_list<std::string_view> keys) const {
    for (const auto& [key, value] : object.items()) {
      const bool is_known = std::find(keys.begin(), keys.end(), key) != keys.end();
      require(is_known || value.is_null(), "{}: {} means nothing here; expected {}", name, key, fmt::join(keys, ", "));
    }
  }
  [[nodiscard]] Entry inside(const char* key) const {
    static const json empty = json::object();
    const auto found = object.find(key);
    require(found == object.end() || found->is_object(), "{}: {} is not an object", name, key);
    return {found == object.end() ? empty : *found, fmt::format("{}: {}", name, key)};
  }
};

// Where columns are listed, those that are not are none.
void take_columns(const Entry& entry, ChatFormat& format) {
  if (!entry.object.contains("columns")) {
    format.history.clear();
    format.system.clear();
    format.tools.clear();
    return;
  }
  const Entry columns = entry.inside("columns");
  columns.allow({"prompt", "query", "response", "history", "messages", "system", "tools", "chosen", "rejected"});
  for (const auto& [key, slot] : {std::pair<const char*, std::string*>{"prompt", &format.prompt},
                                  {"query", &format.query},
                                  {"response", &format.response},
                                  {"history", &format.history},
                                  {"messages", &format.messages},
                                  {"system", &format.system},
                                  {"tools", &format.tools}}) {
    *slot = columns.text(key, "");
  }
  format.chosen = columns.text("chosen", format.chosen);
  format.rejected = columns.text("rejected", format.rejected);
}

void take_tags(const Entry& entry, ChatFormat& format) {
  const Entry tags = entry.inside("tags");
  tags.allow({"role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag"});
  for (const auto& [key, slot] : {std::pair<const char*, std::string*>{"role_tag", &format.role},
                                  {"content_tag", &format.content},
                                  {"user_tag", &format.user},
                                  {"assistant_tag", &format.assistant},
                                  {"observation_tag", &format.observation},
                                  {"function_tag", &format.function},
                                  {"system_tag", &format.system_role}}) {
    *slot = tags.text(key, *slot);
  }
}

bool is_ranking(const Entry& entry) {
  const auto found = entry.object.find("ranking");
  require(found == entry.object.end() || found->is_boolean(), "{}: ranking is {}, expected true or false", entry.name,
          found == entry.object.end() ? "" : found->dump());
  return found != entry.object.end() && found->get<bool>();
}

ChatFormat format_of(const Entry& entry) {
  const std::string name = entry.text("formatting", "alpaca");
  require(name == "alpaca" || name == "sharegpt" || name == "openai",
          "{}: formatting is {}, expected alpaca, sharegpt or openai", entry.name, name);
  ChatFormat format;
  if (name == "alpaca") {
    format.form = ChatFormat::Form::kAlpaca;
  } else {
    format.form = ChatFormat::Form::kMessages;
    if (name == "openai") {
      format.messages = "messages";
      format.role = "role";
      format.content = "content";
      format.user = "user";
      format.assistant = "assistant";
      format.observation = "tool";
    }
  }
  format.is_pairs = is_ranking(entry);
  take_columns(entry, format);
  take_tags(entry, format);
  require(name != "alpaca" || !(format.prompt.empty() && format.query.empty()),
          "{}: columns name neither a prompt nor a query", entry.name);
  require(name == "alpaca" || !format.messages.empty(), "{}: columns name no messages", entry.name);
  return format;
}

// format_of() has checked what they are.
std::map<std::string, std::string> named_columns(const Entry& entry) {
  std::map<std::string, std::string> columns;
  const Entry listed = entry.inside("columns");
  for (const auto& [key, value] : listed.object.items()) {
    if (const std::string column = listed.text(key.c_str(), ""); !column.empty()) {
      columns.emplace(key, column);
    }
  }
  return columns;
}

std::uint64_t number_of_samples(const Entry& entry) {
  const auto found = entry.object.find("num_samples");
  if (found == entry.object.end() || found->is_null()) {
    return 0;
  }
  require(found->is_number_unsigned() && found->get<std::uint64_t>() > 0,
          "{}: num_samples is {}, expected a number of at least 1", entry.name, found->dump());
  return found->get<std::uint64_t>();
}

}  // namespace

NamedDataset parse_named_dataset(std::string_view text, const std::string& origin, const fs::path& folder,
                                 const std::string& name) {
  const json info = json::parse(text, nullptr, false);
  require(info.is_object(), "{}: expected a JSON object", origin);
  const auto found = info.find(name);
  std::vector<std::string> names;
  for (const auto& [key, value] : info.items()) {
    names.push_back(key);
  }
  require(found != info.end(), "{}: no dataset is called {}; expected {}", origin, name, fmt::join(names, ", "));
  const Entry entry{*found, fmt::format("{}: {}", origin, name)};
  require(found->is_object(), "{} is not an object", entry.name);
  for (const char* url : kUrls) {
    require(!found->contains(url) || found->contains("file_name"),
            "{} is {} {}, which is fetched from elsewhere; fetch it first, and name the file in file_name", entry.name,
            url, found->value(url, json()).dump());
  }
  const std::string file = entry.text("file_name", "");
  require(!file.empty(), "{}: file_name is missing", entry.name);
  // A split or subset is of a hub's dataset, and a file has none.
  entry.allow({"file_name", "formatting", "ranking", "columns", "tags", "num_samples", "split", "subset", "folder",
               "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name"});
  return {folder / file, format_of(entry), number_of_samples(entry), named_columns(entry)};
}

NamedDataset find_named_dataset(const fs::path& folder, const std::string& name) {
  const fs::path path = folder / kInfoName;
  require(fs::is_regular_file(path), "{} is not there; --dataset names one of its entries", path.string());
  return parse_named_dataset(read_file(path), path.string(), folder, name);
}

}  // namespace lockstep
