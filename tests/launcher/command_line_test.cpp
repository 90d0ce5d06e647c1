#include "launcher/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "launcher/output.h"

namespace lockstep {
namespace {

class CommandLineTest : public testing::Test {
 protected:
  CommandLineTest() {
    app_.require_subcommand(1);
    app_.set_version_flag("--version", "1");
    CLI::App* pack = app_.add_subcommand("pack", "packs");
    pack->add_option("--tokenizer", tokenizer_, "how")->required();
    pack->add_option("--seed,-s", seed_, "number")->transform(whole_number());
    pack->add_option("INPUT", inputs_, "files");
    app_.add_subcommand("train", "trains");
    app_.add_subcommand("inspect", "looks");
    CLI::App* bench = app_.add_subcommand("bench", "measures");
    bench->add_subcommand("gemm", "products")->add_option("--rounds", rounds_, "how often");
    bench->add_subcommand("step", "steps");
  }

  std::string refusal(const std::vector<std::string>& arguments) {
    try {
      (void)read_command_line(app_, arguments);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUsage);
      return error.what();
    }
    return "no error";
  }

  CLI::App app_{"test", "lockstep"};
  std::string tokenizer_;
  std::uint64_t seed_ = 0;
  int rounds_ = 0;
  std::vector<std::string> inputs_;
};

TEST_F(CommandLineTest, ReadsASubCommandWithItsOptions) {
  EXPECT_TRUE(read_command_line(app_, std::vector<std::string>{"pack", "--tokenizer", "bytes", "a", "b", "-s", "7"}));
  EXPECT_EQ(tokenizer_, "bytes");
  EXPECT_EQ(seed_, 7U);
  EXPECT_THAT(inputs_, testing::ElementsAre("a", "b"));
}

TEST_F(CommandLineTest, NamesTheNearestCommand) {
  EXPECT_EQ(refusal({"trian", "x.yaml"}), "trian is not a command; did you mean train?");
  EXPECT_EQ(refusal({"frobnicate"}), "frobnicate is not a command");
}

TEST_F(CommandLineTest, KnowsTheCommandsOfACommand) {
  testing::internal::CaptureStderr();
  EXPECT_EQ(refusal({"bench"}), "a command is missing: gemm, step");
  EXPECT_THAT(testing::internal::GetCapturedStderr(), testing::HasSubstr("Subcommands:"));
  EXPECT_TRUE(read_command_line(app_, std::vector<std::string>{"bench", "gemm", "--rounds", "3"}));
  EXPECT_EQ(rounds_, 3);
  EXPECT_EQ(refusal({"bench", "stepp"}), "stepp is not a command; did you mean step?");
  EXPECT_EQ(refusal({"bench", "gemm", "--round", "3"}), "--round is not an option; did you mean --rounds?");
}

TEST_F(CommandLineTest, NamesTheNearestOption) {
  EXPECT_EQ(refusal({"pack", "--tokenizer", "bytes", "--sed", "7"}), "--sed is not an option; did you mean --seed?");
  EXPECT_EQ(refusal({"pack", "--tokeniser=bytes"}), "--tokeniser is not an option; did you mean --tokenizer?");
  EXPECT_EQ(refusal({"--verison"}), "--verison is not an option; did you mean --version?");
}

TEST_F(CommandLineTest, SaysWhatIsMissingOrMalformed) {
  EXPECT_EQ(refusal({"pack"}), "--tokenizer is required");
  EXPECT_THAT(refusal({"pack", "--tokenizer"}), testing::HasSubstr("--tokenizer"));
  EXPECT_EQ(refusal({"train", "a", "b"}), "unexpected argument a");
}

TEST_F(CommandLineTest, RefusesWhatIsNoWholeNumber) {
  for (const char* text : {"x", "-1", "1.5", "7x", "18446744073709551616"}) {
    EXPECT_EQ(refusal({"pack", "--tokenizer", "bytes", fmt::format("--seed={}", text)}),
              fmt::format("--seed: {} is not a whole number from 0 to 18446744073709551615", text));
  }
  EXPECT_TRUE(read_command_line(
      app_, std::vector<std::string>{"pack", "--tokenizer", "bytes", "--seed", "18446744073709551615"}));
  EXPECT_EQ(seed_, 18446744073709551615U);
  EXPECT_TRUE(read_command_line(app_, std::vector<std::string>{"pack", "--tokenizer", "bytes", "--seed", "010"}));
  EXPECT_EQ(seed_, 10U);
}

TEST_F(CommandLineTest, KnowsWhoseMessageItIs) {
  EXPECT_EQ(command_name(app_, std::vector<std::string>{"pack", "--nonsense"}), "lockstep pack");
  EXPECT_EQ(command_name(app_, std::vector<std::string>{"nonsense"}), "lockstep");
  EXPECT_EQ(command_name(app_, {}), "lockstep");
}

TEST(OneLine, ShowsWhatWouldBreakIt) {
  EXPECT_EQ(one_line("a\nb\tc\x1b[1m"), "a\\nb\\x09c\\x1b[1m");
  EXPECT_EQ(one_line("h\xc3\xa4h"), "h\xc3\xa4h");
  const std::string long_text(1999, 'x');
  EXPECT_EQ(one_line(long_text + "yz"), long_text + "y...");
  EXPECT_EQ(one_line(long_text + "\xc3\xa4"), long_text + "...");
}

}  // namespace
}  // namespace lockstep
