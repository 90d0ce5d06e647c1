// The methods of texts, lists and dicts, and the attributes of `loop`.
#pragma once

#include <optional>
#include <string_view>

#include "data/chat/jinja/value.h"

namespace lockstep::jinja {

// `of.name` to be called, while `budget` lives; nothing where Python has no such method. One that would change the
// value, which the sandbox forbids, is undefined. Throws Failure for one that Python has and this does not.
[[nodiscard]] std::optional<Value> method_of(const Value& of, std::string_view name, Budget& budget);

[[nodiscard]] Value loop_attribute(const Loop& loop, std::string_view name);

// Python's text.replace(), text.split() and text.splitlines().
struct Replacement {
  TextView from;
  TextView to;
  std::int64_t most = -1;  // of them; negative: all
};
[[nodiscard]] Text replaced(TextView text, const Replacement& replacement, Budget& budget);
[[nodiscard]] std::vector<Text> lines_of(TextView text, bool keep_ends);

}  // namespace lockstep::jinja
