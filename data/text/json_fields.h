// Reading JSON by name and type, with errors that give the place. For .cpp files: it brings nlohmann/json.hpp along.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "base/error.h"
#include "data/text/unicode.h"

namespace lockstep {

// A value in a JSON document together with the way to it ("model.vocab"), for messages that begin with the document's
// name.
class JsonField {
 public:
  using Json = nlohmann::json;

  JsonField(const Json& value, std::string_view document, std::string path = "")
      : value_(&value), document_(document), path_(std::move(path)) {}

  [[nodiscard]] const Json& value() const { return *value_; }
  [[nodiscard]] std::string_view document() const { return document_; }
  [[nodiscard]] bool is_null() const { return value_->is_null(); }

  // The member `key`; null when it is missing.
  [[nodiscard]] JsonField at(std::string_view key) const {
    static const Json kNull;
    expect(value_->is_object(), "an object");
    const auto found = value_->find(key);
    return {found == value_->end() ? kNull : *found, document_,
            path_.empty() ? std::string(key) : fmt::format("{}.{}", path_, key)};
  }
  // The elements of an array.
  [[nodiscard]] std::vector<JsonField> elements() const {
    expect(value_->is_array(), "an array");
    std::vector<JsonField> all;
    all.reserve(value_->size());
    for (const Json& element : *value_) {
      all.emplace_back(element, document_, fmt::format("{}[{}]", path_, all.size()));
    }
    return all;
  }
  [[nodiscard]] const std::string& text() const {
    expect(value_->is_string(), "a string");
    return value_->get_ref<const std::string&>();
  }
  [[nodiscard]] bool flag(bool if_missing) const {
    expect(value_->is_boolean() || is_null(), "true or false");
    return is_null() ? if_missing : value_->get<bool>();
  }
  // An integer in [0, limit).
  [[nodiscard]] std::uint32_t index_below(std::uint32_t limit) const {
    if (!value_->is_number_unsigned() || value_->get<std::uint64_t>() >= limit) {
      wrong(fmt::format("an integer from 0 to {}", limit - 1));
    }
    return value_->get<std::uint32_t>();
  }

  [[noreturn]] void wrong(std::string_view expected) const {
    fail(ErrorCode::kCorrupt, "{}: {} is {}, expected {}", document_, path_.empty() ? "the document" : path_, shown(),
         expected);
  }
  [[noreturn]] void unsupported(std::string_view known) const {
    fail(ErrorCode::kUnsupported, "{}: {} is {}, which is not supported; {}", document_, path_, shown(), known);
  }

 private:
  void expect(bool condition, std::string_view expected) const {
    if (!condition) {
      wrong(expected);
    }
  }
  // The value, short enough for a message.
  [[nodiscard]] std::string shown() const {
    if (is_null()) {
      return "missing";
    }
    if (value_->is_structured()) {
      return fmt::format("an {} of {}", value_->type_name(), value_->size());
    }
    return value_->is_string() ? in_quotes(value_->get_ref<const std::string&>()) : value_->dump();
  }

  const Json* value_;
  std::string_view document_;
  std::string path_;
};

// Parses a document in which no object has a key twice. Throws Error(kCorrupt) with the place, beginning with
// `document`.
[[nodiscard]] inline nlohmann::json parse_json(std::string_view text, std::string_view document) {
  using Json = nlohmann::json;
  std::vector<std::unordered_set<std::string>> keys;  // of the objects that are open
  const auto check = [&](int, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) {
      keys.emplace_back();
    } else if (event == Json::parse_event_t::object_end) {
      keys.pop_back();
    } else if (event == Json::parse_event_t::key && !keys.back().insert(parsed.get<std::string>()).second) {
      fail(ErrorCode::kCorrupt, "{}: the key {} stands twice in one object", document,
           in_quotes(parsed.get<std::string>()));
    }
    return true;
  };
  try {
    return Json::parse(text, check);
  } catch (const Json::parse_error& error) {
    fail(ErrorCode::kCorrupt, "{}: not valid JSON at byte {} of {}", document, error.byte, text.size());
  } catch (const Json::out_of_range&) {
    fail(ErrorCode::kCorrupt, "{}: not valid JSON: a number is out of range", document);
  }
}

}  // namespace lockstep
