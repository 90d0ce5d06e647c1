// What a command prints for its caller, as opposed to what the log tells a person.
#pragma once

#include <string>
#include <string_view>

namespace lockstep {

// Writes `text` to stdout, at once. Throws Error(kNoSpace, kIo) when it does not get there: a result that is lost is a
// failure of the command.
void print(std::string_view text);

// An error as one line, whatever a file that it speaks of has put into it: line ends and other control characters are
// written as \n or \x1b, and of more than 2,000 bytes the rest is left out.
[[nodiscard]] std::string one_line(std::string_view message);

}  // namespace lockstep
