// What a command prints for its caller, as opposed to what the log tells a person.
#pragma once

#include <string_view>

namespace lockstep {

// Writes `text` to stdout, at once. Throws Error(kNoSpace, kIo) when it does not get there: a result that is lost is a
// failure of the command.
void print(std::string_view text);

}  // namespace lockstep
