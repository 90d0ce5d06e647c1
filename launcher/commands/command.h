// What a sub-command of `lockstep` is made of.
//
// A command `foo` is one file, commands/foo.cpp, with a function `void add_foo(CLI::App& app, CommandContext& context)`
// that is declared here and called in main.cpp. It adds its sub-command and options to `app`, and in the sub-command's
// callback stores the work in `context.run`; main() calls that after the whole command line was read. An Error thrown
// by `run` ends the program with one line and the exit code of its kind.
#pragma once

#include <exception>
#include <functional>

#include "base/error.h"
#include "base/log.h"
#include "comm/rank_environment.h"
#include "launcher/signals.h"

namespace CLI {
class App;
}

namespace lockstep {

inline constexpr int kExitDone = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitRequeue = 75;  // saved before the end because a signal asked for it

[[nodiscard]] int exit_code_of(ErrorCode code);
// kExitFailed for an exception that is no Error.
[[nodiscard]] int exit_code_of(const std::exception& error);

struct CommandContext {
  Log& log;                       // for people, on stderr; results go to stdout
  StopSignal& stop;               // a command that polls it calls stop.listen() first
  const RankEnvironment& ranks;   // of this process
  std::function<int()> run = {};  // returns the exit code
};

void add_pack(CLI::App& app, CommandContext& context);
void add_train(CLI::App& app, CommandContext& context);
void add_generate(CLI::App& app, CommandContext& context);
void add_chat(CLI::App& app, CommandContext& context);
void add_eval(CLI::App& app, CommandContext& context);
void add_export(CLI::App& app, CommandContext& context);
void add_merge(CLI::App& app, CommandContext& context);
void add_verify(CLI::App& app, CommandContext& context);
void add_inspect(CLI::App& app, CommandContext& context);
void add_bench(CLI::App& app, CommandContext& context);
void add_devices(CLI::App& app, CommandContext& context);
void add_launch(CLI::App& app, CommandContext& context);
void add_status(CLI::App& app, CommandContext& context);
void add_serve(CLI::App& app, CommandContext& context);

}  // namespace lockstep
