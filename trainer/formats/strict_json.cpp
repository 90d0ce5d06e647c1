#include "trainer/formats/strict_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <vector>

#include "base/error.h"

namespace lockstep {
namespace {

constexpr int kMaxDepth = 64;
constexpr std::size_t kMaxQuotedBytes = 100;

using Event = nlohmann::json::parse_event_t;

}  // namespace

nlohmann::json parse_strict_json(std::string_view text, const std::string& what) {
  std::vector<std::unordered_set<std::string>> keys_of_open_objects;
  const auto check = [&](int depth, Event event, nlohmann::json& value) {
    if (depth > kMaxDepth) {
      fail(ErrorCode::kCorrupt, "{}: JSON nested deeper than {}", what, kMaxDepth);
    }
    if (event == Event::object_start) {
      keys_of_open_objects.emplace_back();
    } else if (event == Event::object_end) {
      keys_of_open_objects.pop_back();
    } else if (event == Event::key) {
      const auto& key = value.get_ref<const std::string&>();
      if (!keys_of_open_objects.back().insert(key).second) {
        fail(ErrorCode::kCorrupt, "{}: key {} stands twice", what, quoted_name(key));
      }
    }
    return true;
  };
  try {
    return nlohmann::json::parse(text.begin(), text.end(), check);
  } catch (const nlohmann::json::parse_error& error) {
    fail(ErrorCode::kCorrupt, "{}: not valid JSON at byte {} of {}", what, std::min(error.byte, text.size()),
         text.size());
  } catch (const nlohmann::json::exception&) {
    fail(ErrorCode::kCorrupt, "{}: holds a number that is out of range", what);
  }
}

std::string quoted_name(std::string_view name) {
  std::string text = "\"";
  for (const char c : name.substr(0, kMaxQuotedBytes)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      text += fmt::format("\\x{:02x}", byte);
    } else {
      text += c;
    }
  }
  text += name.size() > kMaxQuotedBytes ? "...\"" : "\"";
  return text;
}

}  // namespace lockstep
