#include "trainer/trained_text.h"

#include <nlohmann/json.hpp>

#include "base/file.h"

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;

std::string text_of(const Json& json) { return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n"; }

}  // namespace

std::optional<std::int32_t> trained_end(const std::filesystem::path& folder, const Tokenizer& tokenizer) {
  const std::filesystem::path path = folder / "tokenizer_config.json";
  if (!std::filesystem::is_regular_file(path)) {
    return {};
  }
  const Json json = Json::parse(read_file(path), nullptr, false);
  const auto found = json.is_object() ? json.find("eos_token") : json.end();
  if (found == json.end() || !found->is_string()) {
    return {};
  }
  const auto id = tokenizer.added_token(found->get<std::string>());
  return id ? std::optional(static_cast<std::int32_t>(*id)) : std::nullopt;
}

std::string with_end(const std::string& config, std::int32_t end) {
  Json json = Json::parse(config);
  Json ends = Json::array({end});
  const Json before = json.value("eos_token_id", Json());
  for (const Json& id : before.is_array() ? before : Json::array({before})) {
    if (!id.is_null() && id != end) {
      ends.push_back(id);
    }
  }
  json["eos_token_id"] = ends.size() == 1 ? ends[0] : ends;
  return text_of(json);
}

std::string with_tokens_of_base(const std::string& tuned, const std::string& base) {
  Json json = Json::parse(tuned);
  const Json from = Json::parse(base);
  // Where a tokenizer names no beginning, runs name their end.
  if (json.value("bos_token", Json()) == json.value("eos_token", Json())) {
    json.erase("bos_token");
  }
  for (const char* const key : {"bos_token", "unk_token", "pad_token"}) {
    if (from.contains(key) && !from[key].is_null()) {
      json[key] = from[key];
    }
  }
  return text_of(json);
}

}  // namespace lockstep
