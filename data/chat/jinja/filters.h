// Jinja's filters and tests by name, as jinja2 and transformers have them.
//
// One difference: `safe` and `escape` give plain texts, so joining them with others escapes nothing.
#pragma once

#include <string_view>

#include "data/chat/jinja/value.h"

namespace lockstep::jinja {

// The value that is filtered is the first positional argument. Throws Failure for a filter that is not known.
[[nodiscard]] Value apply_filter(std::string_view name, const Arguments& arguments, Budget& budget);
[[nodiscard]] bool apply_test(std::string_view name, const Arguments& arguments, Budget& budget);
[[nodiscard]] bool is_filter(std::string_view name);
[[nodiscard]] bool is_test(std::string_view name);

}  // namespace lockstep::jinja
