#include "launcher/terminal.h"

#include <gtest/gtest.h>

#include <map>
#include <string>

#include "base/error.h"

namespace lockstep {
namespace {

EnvironmentLookup environment(std::map<std::string, std::string> variables) {
  return [variables = std::move(variables)](const std::string& name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    return found == variables.end() ? std::nullopt : std::optional(found->second);
  };
}

TEST(TerminalTest, HasNoWidthWhereLinesAreAskedFor) {
  EXPECT_EQ(terminal_columns(environment({{"LOCKSTEP_PROGRESS", "lines"}, {"TERM", "xterm"}}), Starter::kAlone)(), 0);
}

TEST(TerminalTest, HasNoWidthOnADumbTerminal) {
  EXPECT_EQ(terminal_columns(environment({{"TERM", "dumb"}}), Starter::kAlone)(), 0);
  EXPECT_EQ(terminal_columns(environment({}), Starter::kMpirun)(), 0);
}

TEST(TerminalTest, HasAWidthWhereABarIsAskedFor) {
  EXPECT_GT(terminal_columns(environment({{"LOCKSTEP_PROGRESS", "bar"}}), Starter::kAlone)(), 0);
  EXPECT_GT(terminal_columns(environment({{"LOCKSTEP_PROGRESS", "bar"}}), Starter::kMpirun)(), 0);
}

TEST(TerminalTest, RefusesAnotherWish) {
  try {
    (void)terminal_columns(environment({{"LOCKSTEP_PROGRESS", "fancy"}}), Starter::kAlone);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUsage);
    EXPECT_STREQ(error.what(), "LOCKSTEP_PROGRESS is fancy; expected auto, bar or lines");
  }
}

}  // namespace
}  // namespace lockstep
