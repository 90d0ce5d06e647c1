#include "launcher/command_line.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cstdint>
#include <iostream>
#include <system_error>
#include <vector>

#include "base/error.h"
#include "base/nearest.h"

namespace lockstep {
namespace {

std::vector<std::string> subcommand_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands({})) {
    names.push_back(command->get_name());
  }
  return names;
}

std::vector<std::string> option_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) {
      names.push_back("--" + name);
    }
    for (const std::string& name : option->get_snames()) {
      names.push_back("-" + name);
    }
  }
  return names;
}

const CLI::App& chosen_command(const CLI::App& app) {
  const auto chosen = app.get_subcommands();
  return chosen.empty() ? app : chosen_command(*chosen.front());
}

[[noreturn]] void fail_unknown_option(const CLI::App& command, const std::string& argument) {
  const std::string flag = argument.substr(0, argument.find('='));
  fail(ErrorCode::kUsage, "{} is not an option{}", flag, did_you_mean(flag, option_names(command)));
}

[[noreturn]] void fail_extra(const CLI::App& app) {
  const CLI::App& command = chosen_command(app);
  const std::vector<std::string> extras = command.remaining();
  const std::string extra = extras.empty() ? "" : extras.front();
  if (extra.starts_with('-')) {
    fail_unknown_option(command, extra);
  }
  fail(ErrorCode::kUsage, "unexpected argument {}", extra);
}

// Commands stand first, and some have commands of their own.
void check_commands(const CLI::App& app, std::span<const std::string> arguments) {
  const CLI::App* level = &app;
  for (std::size_t i = 0;; ++i) {
    const std::vector<std::string> names = subcommand_names(*level);
    if (names.empty() || (i < arguments.size() && arguments[i].starts_with('-'))) {
      return;
    }
    if (i == arguments.size()) {
      std::cerr << level->help();
      fail(ErrorCode::kUsage, "a command is missing: {}", fmt::join(names, ", "));
    }
    require(std::find(names.begin(), names.end(), arguments[i]) != names.end(), "{} is not a command{}", arguments[i],
            did_you_mean(arguments[i], names));
    level = level->get_subcommand(arguments[i]);
  }
}

// A required option is often missing because its name is mistyped, and then that is what to say.
void check_option_names(const CLI::App& app, std::span<const std::string> arguments) {
  const CLI::App& command = chosen_command(app);
  const std::vector<std::string> known = option_names(command);
  for (const std::string& argument : arguments) {
    const std::string flag = argument.substr(0, argument.find('='));
    if (flag == "--") {
      return;
    }
    if (flag.starts_with("--") && std::find(known.begin(), known.end(), flag) == known.end()) {
      fail_unknown_option(command, argument);
    }
  }
}

// CLI11 ends some messages with a full stop or a line break.
std::string one_line(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  while (!text.empty() && (text.back() == ' ' || text.back() == '.')) {
    text.pop_back();
  }
  return text;
}

}  // namespace

bool read_command_line(CLI::App& app, std::span<const std::string> arguments) {
  check_commands(app, arguments);
  // CLI11 takes arguments from the back.
  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
  try {
    app.parse(reversed);
    return true;
  } catch (const CLI::Success& printed) {
    app.exit(printed);
    return false;
  } catch (const CLI::ExtrasError&) {
    fail_extra(app);
  } catch (const CLI::RequiredError& error) {
    check_option_names(app, arguments);
    fail(ErrorCode::kUsage, "{}", one_line(error.what()));
  } catch (const CLI::ParseError& error) {
    fail(ErrorCode::kUsage, "{}", one_line(error.what()));
  }
}

CLI::Validator whole_number() {
  return CLI::Validator(
      [](std::string& text) {
        std::uint64_t value = 0;
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
        if (error != std::errc() || end != text.data() + text.size()) {
          return text + " is not a whole number from 0 to 18446744073709551615";
        }
        text = std::to_string(value);
        return std::string();
      },
      "");
}

CLI::Validator above_zero() {
  return CLI::Validator(
      [](std::string& text) {
        double value = 0;
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
        const bool is_number = error == std::errc() && end == text.data() + text.size();
        return is_number && value > 0 ? std::string() : text + " is not a number above 0";
      },
      "");
}

std::string command_name(const CLI::App& app, std::span<const std::string> arguments) {
  const std::vector<std::string> names = subcommand_names(app);
  const bool known = !arguments.empty() && std::find(names.begin(), names.end(), arguments[0]) != names.end();
  return known ? app.get_name() + " " + arguments[0] : app.get_name();
}

}  // namespace lockstep
