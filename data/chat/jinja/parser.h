// The tree of a template's source.
#pragma once

#include <string_view>

#include "data/chat/jinja/ast.h"

namespace lockstep::jinja {

// Throws Failure with the line: what was found and what was expected, or what is not supported.
[[nodiscard]] Block parse_template(std::string_view source);

}  // namespace lockstep::jinja
