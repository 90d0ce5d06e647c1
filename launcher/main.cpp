// The lockstep program: builds what commands need from the process's surroundings, runs one, and turns what goes wrong
// into one line and an exit code.
#include <CLI/CLI.hpp>
#include <chrono>
#include <csignal>
#include <exception>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/heap.h"
#include "base/log.h"
#include "comm/communicator.h"
#include "comm/rank_environment.h"
#include "launcher/command_line.h"
#include "launcher/commands/command.h"
#include "launcher/output.h"
#include "launcher/signals.h"
#include "launcher/terminal.h"
#include "trainer/agreement.h"

namespace lockstep {
namespace {

constexpr const char* kFooter = R"(Exit codes: 0 done, 1 failed, 2 bad usage or input (nothing was changed),
75 stopped by a signal after saving, to be started again.

Environment: LOCKSTEP_PROGRESS=bar|lines   instead of detecting a terminal
             LOCKSTEP_LOG=debug|info|warning|error   least important lines to show

Example: mpirun -np 2 lockstep train examples/shakespeare/shakespeare.yaml)";

LogLevel log_level(const EnvironmentLookup& environment) {
  const std::string text = environment("LOCKSTEP_LOG").value_or("info");
  for (const LogLevel level : {LogLevel::kDebug, LogLevel::kInfo, LogLevel::kWarning, LogLevel::kError}) {
    if (text == name_of(level)) {
      return level;
    }
  }
  fail(ErrorCode::kUsage, "LOCKSTEP_LOG is {}; expected debug, info, warning or error", text);
}

// Who else knows what this rank failed of.
enum class Known {
  kAgreed,    // all ranks: rank 0 says it
  kProbably,  // the others meet the same (a bad flag), or it comes from another rank's failure: rank 0 speaks first
  kHere,      // nobody: it is said at once, because rank 0 ends the job as soon as this rank is missing
};

// What all ranks found wrong, rank 0 says for all: the others wait until the launcher has ended them, and speak up only
// when it has not, because then the trouble is theirs alone.
void report(const std::string& line, const RankEnvironment& environment, Known known) {
  std::string prefix;
  if (environment.rank != 0) {
    StopSignal stop;
    stop.listen();
    for (int i = 0; known != Known::kHere && i < 20 && !stop.requested(); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    if (stop.requested() || known == Known::kAgreed) {
      return;
    }
    prefix = fmt::format("[rank {}] ", environment.rank);
  }
  const std::string text = prefix + one_line(line) + "\n";
  std::fwrite(text.data(), 1, text.size(), stderr);
}

Known known_of(ErrorCode code) {
  const bool shared = code == ErrorCode::kUsage || code == ErrorCode::kPeerLost || code == ErrorCode::kTimeout;
  return shared ? Known::kProbably : Known::kHere;
}

int run_command(CLI::App& app, const RankEnvironment& ranks, const std::vector<std::string>& arguments) {
  const EnvironmentLookup environment = process_environment();
  Log log({.rank = ranks.rank,
           .world_size = ranks.world_size,
           .level = log_level(environment),
           .columns = terminal_columns(environment, ranks.starter)});
  StopSignal stop;
  CommandContext context{.log = log, .stop = stop, .ranks = ranks};
  add_pack(app, context);
  add_train(app, context);
  add_launch(app, context);
  add_status(app, context);
  add_serve(app, context);
  add_generate(app, context);
  add_chat(app, context);
  add_eval(app, context);
  add_export(app, context);
  add_merge(app, context);
  add_verify(app, context);
  add_inspect(app, context);
  add_bench(app, context);
  add_devices(app, context);
  return read_command_line(app, arguments) ? context.run() : kExitDone;
}

int run(const std::vector<std::string>& arguments) {
  CLI::App app("Trains neural networks data-parallel: the same weights, bit for bit, on any number of ranks.",
               "lockstep");
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string("lockstep ") + LOCKSTEP_VERSION, "Print the version");
  app.footer(kFooter);
  app.get_formatter()->column_width(34);

  RankEnvironment ranks;
  try {
    ranks = detect_rank_environment(process_environment());
    return run_command(app, ranks, arguments);
  } catch (const Error& error) {
    const bool agreed = dynamic_cast<const AgreedError*>(&error) != nullptr;
    report(fmt::format("{}: {}", command_name(app, arguments), error.what()), ranks,
           agreed ? Known::kAgreed : known_of(error.code()));
    return exit_code_of(error);
  } catch (const std::exception& error) {
    report(fmt::format("{}: {}", command_name(app, arguments), error.what()), ranks, Known::kHere);
    return kExitFailed;
  }
}

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) {
  lockstep::keep_freed_memory();
  std::signal(SIGXFSZ, SIG_IGN);  // a limit on file sizes is an error of the write that meets it
  const int exit_code = lockstep::run(std::vector<std::string>(argv + 1, argv + argc));
  if (exit_code == lockstep::kExitFailed || exit_code == lockstep::kExitUsage) {
    lockstep::end_process(exit_code);  // a group of ranks may have ended without close()
  }
  return exit_code;
}
