// JSON as formats want it: what a permissive parser lets through is an error here.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace lockstep {

// Parses `text`. Throws Error(kCorrupt), its message beginning with `what`, on invalid JSON or UTF-8, a key that stands
// twice in one object, and nesting deeper than 64.
[[nodiscard]] nlohmann::json parse_strict_json(std::string_view text, const std::string& what);

// A name out of a file, fit to stand in a one-line message: in quotes, control characters escaped, at most 100 bytes.
[[nodiscard]] std::string quoted_name(std::string_view name);

}  // namespace lockstep
