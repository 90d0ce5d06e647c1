// Runs a template's tree.
#pragma once

#include <ctime>

#include "data/chat/jinja/ast.h"

namespace lockstep::jinja {

// Throws Failure with the line.
[[nodiscard]] Text run(const Block& block, const Value& context, std::time_t now);

}  // namespace lockstep::jinja
