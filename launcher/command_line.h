// Reading the command line, with errors that help.
#pragma once

#include <span>
#include <string>

namespace CLI {
class App;
class Validator;
}  // namespace CLI

namespace lockstep {

// Lets CLI11 read `arguments` (without the program's name) into `app`. Returns true when there is something to run and
// false when what was asked for is already printed (--help, --version). Throws Error(kUsage) that names the nearest
// sub-command or option for one that does not exist.
[[nodiscard]] bool read_command_line(CLI::App& app, std::span<const std::string> arguments);

// For Option::transform() of a number without a sign: refuses what is none. CLI11's own conversion takes -1 for 2^64 -
// 1 and 010 for 8.
[[nodiscard]] CLI::Validator whole_number();
// For Option::check() of a number that is more than 0.
[[nodiscard]] CLI::Validator above_zero();

// "lockstep train" when `arguments` begin with a sub-command, otherwise "lockstep": how messages begin.
[[nodiscard]] std::string command_name(const CLI::App& app, std::span<const std::string> arguments);

}  // namespace lockstep
