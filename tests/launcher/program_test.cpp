// The command line as a real process: exit codes, one-line errors, help.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/support/process.h"

namespace lockstep {
namespace {

ProcessResult lockstep(std::vector<std::string> arguments, const std::vector<std::string>& environment = {}) {
  arguments.insert(arguments.begin(), LOCKSTEP_PROGRAM);
  return run_process(arguments, environment);
}

TEST(ProgramTest, ListsDevicesOnAnyMachine) {
  const ProcessResult result = run_process({LOCKSTEP_PROGRAM, "devices", "--json"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const auto json = nlohmann::json::parse(result.out);
  EXPECT_GT(json.at("cores"), 0);
  EXPECT_EQ(json.at("gpus").empty(), json.contains("problem"));
}

TEST(ProgramTest, PrintsItsVersion) {
  const ProcessResult result = lockstep({"--version"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.out, testing::MatchesRegex("lockstep [0-9]+\\.[0-9]+\\.[0-9]+\n"));
  EXPECT_EQ(result.err, "");
}

TEST(ProgramTest, ExplainsItself) {
  const ProcessResult result = lockstep({"--help"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.out, testing::HasSubstr("inspect"));
  EXPECT_THAT(result.out, testing::HasSubstr("Exit codes"));
}

TEST(ProgramTest, ExplainsEveryCommandItLists) {
  const std::string help = lockstep({"--help"}).out;
  std::size_t commands = 0;
  for (const std::string command : {"pack", "train", "generate", "eval", "verify", "inspect"}) {
    if (help.find("\n  " + command + " ") == std::string::npos) {
      continue;
    }
    ++commands;
    const ProcessResult result = lockstep({command, "--help"});
    EXPECT_EQ(result.exit_code, 0) << command;
    EXPECT_THAT(result.out, testing::HasSubstr("lockstep " + command)) << command;
  }
  EXPECT_GE(commands, 1U);
}

TEST(ProgramTest, RefusesWhatItDoesNotKnowInOneLine) {
  const ProcessResult command = lockstep({"inspct", "."});
  EXPECT_EQ(command.exit_code, 2);
  EXPECT_EQ(command.err, "lockstep: inspct is not a command; did you mean inspect?\n");
  const ProcessResult option = lockstep({"inspect", ".", "--jsn"});
  EXPECT_EQ(option.exit_code, 2);
  EXPECT_EQ(option.err, "lockstep inspect: --jsn is not an option; did you mean --json?\n");
  const ProcessResult missing = lockstep({"inspect"});
  EXPECT_EQ(missing.exit_code, 2);
  EXPECT_EQ(missing.err, "lockstep inspect: PATH is required\n");
}

TEST(ProgramTest, ShowsItsHelpWhenACommandIsMissing) {
  const ProcessResult result = lockstep({});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, testing::HasSubstr("Usage"));
  EXPECT_THAT(result.err,
              testing::EndsWith("lockstep: a command is missing: pack, train, launch, status, serve, generate, chat, "
                                "eval, export, merge, verify, inspect, bench, devices\n"));
}

TEST(ProgramTest, RefusesEnvironmentVariablesThatMeanNothing) {
  EXPECT_EQ(lockstep({"--version"}, {"LOCKSTEP_LOG=loud"}).err,
            "lockstep: LOCKSTEP_LOG is loud; expected debug, info, warning or error\n");
  EXPECT_EQ(lockstep({"--version"}, {"LOCKSTEP_PROGRESS=fancy"}).exit_code, 2);
}

TEST(ProgramTest, SpeaksForAllRanksFromRankZeroFirst) {
  const std::vector<std::string> zero = {"OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE=2"};
  EXPECT_EQ(lockstep({"inspct"}, zero).err, "lockstep: inspct is not a command; did you mean inspect?\n");
  const std::vector<std::string> one = {"OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE=2"};
  EXPECT_EQ(lockstep({"inspct"}, one).err, "[rank 1] lockstep: inspct is not a command; did you mean inspect?\n");
  // mpirun ends the other ranks when rank 0 has ended; nothing is left to be said then.
  Process process({LOCKSTEP_PROGRAM, "inspct"}, one);
  for (int i = 0; i < 40 && process.is_running(); ++i) {
    process.send(SIGTERM);
    usleep(50'000);
  }
  EXPECT_EQ(process.wait().err, "");
}

}  // namespace
}  // namespace lockstep
