// lockstep pack as people run it: alone, under mpirun, killed and started again.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/data/pack/pack_fixture.h"
#include "tests/support/process.h"

namespace lockstep {
namespace {

using testing::HasSubstr;

class PackProgramTest : public PackTest {
 protected:
  // "OUT" and "IN" in the arguments stand for folders of the test.
  [[nodiscard]] std::vector<std::string> command(int ranks, const std::string& out,
                                                 std::vector<std::string> arguments) const {
    std::vector<std::string> words;
    if (ranks > 0) {
      words = {MPIRUN, std::to_string(ranks)};
    }
    words.insert(words.end(), {LOCKSTEP_PROGRAM, "pack", "--out", (folder_ / out).string()});
    words.insert(words.end(), arguments.begin(), arguments.end());
    words.push_back((folder_ / "in").string());
    return words;
  }
};

TEST_F(PackProgramTest, GivesTheSameFilesAloneAndUnderMpirun) {
  for (std::uint64_t i = 0; i < 10; ++i) {
    write_input("f" + std::to_string(i) + ".txt", random_text(700'000, i));
  }
  const std::vector<std::string> arguments = {"--format", "text", "--tokenizer", "bpe:512", "--shard-mib", "1"};
  const ProcessResult alone = run_process(command(0, "alone", arguments));
  EXPECT_EQ(alone.exit_code, 0) << alone.err;
  EXPECT_THAT(alone.out, HasSubstr("train  "));
  for (const int ranks : {1, 2, 4}) {
    const std::string out = "ranks" + std::to_string(ranks);
    const ProcessResult result = run_process(command(ranks, out, arguments));
    EXPECT_EQ(result.exit_code, 0) << result.err;
    expect_same_files(folder_ / "alone", folder_ / out);
  }
}

TEST_F(PackProgramTest, ShowsWhatIsTrainedOn) {
  write_input("chats.json", R"([{"instruction": "2+2?", "output": "4"}, {"instruction": "2+3?", "output": "5"}])");
  const std::vector<std::string> arguments = {"--format", "chat",    "--template", "default", "--tokenizer",
                                              "bytes",    "--split", "1",          "--show",  "1"};
  for (int time = 0; time < 2; ++time) {  // also when there is nothing to do
    EXPECT_THAT(run_process(command(0, "shown", arguments)).out,
                testing::EndsWith("--- conversation 1 of " + (folder_ / "shown" / "train").string() +
                                  ": 26 tokens, 2 of them trained on\nHuman: 2+2?<|endoftext|>\nAssistant:[[4"
                                  "<|endoftext|>]]\n\n"));
  }
  EXPECT_EQ(run_process(command(0, "x", {"--format", "text", "--tokenizer", "bytes", "--show", "1"})).err,
            "lockstep pack: --show is for --format chat or pairs\n");
}

TEST_F(PackProgramTest, NamesFileAndLineOnceOnAllRanksAndLeavesNothing) {
  std::string text;
  for (int i = 1; i < 30'000; ++i) {
    text += i == 20'001 ? "{\"txt\": \"?\"}\n" : "{\"text\": \"" + std::string(100, 'x') + "\"}\n";
  }
  write_input("corpus.jsonl", text);
  for (const int ranks : {0, 2}) {
    const ProcessResult result =
        run_process(command(ranks, "out", {"--format", "jsonl", "--tokenizer", "bytes", "--shard-mib", "1"}));
    EXPECT_EQ(result.exit_code, 2);
    const std::string line =
        "lockstep pack: " + (folder_ / "in/corpus.jsonl").string() + " line 20001: \"text\" is missing\n";
    const std::size_t found = result.err.find(line);
    EXPECT_NE(found, std::string::npos) << result.err;
    EXPECT_EQ(result.err.find(line, found + 1), std::string::npos) << "said more than once:\n" << result.err;
    EXPECT_FALSE(std::filesystem::exists(folder_ / "out"));
  }
}

TEST_F(PackProgramTest, RefusesNumbersThatMakeNoSense) {
  write_input("a.txt", "a");
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"--seed", "-1"}, "--seed: -1 is not a whole number from 0 to 18446744073709551615"},
      {{"--shard-mib", "0.5"}, "--shard-mib: 0.5 is not a whole number from 0 to 18446744073709551615"},
      {{"--shard-mib", "2000000"}, "--shard-mib is 2000000, expected 1 to 1048576 MiB"},
      {{"--memory", "0"}, "--memory is 0, expected 1 to 1048576 MiB"},
      {{"--bpe-sample-mib", "0"}, "--bpe-sample-mib is 0, expected 1 to 1048576 MiB"},
  };
  for (const auto& [options, message] : cases) {
    std::vector<std::string> arguments = {"--format", "text", "--tokenizer", "bytes"};
    arguments.insert(arguments.end(), options.begin(), options.end());
    const ProcessResult result = run_process(command(0, "out", arguments));
    EXPECT_EQ(result.exit_code, 2);
    EXPECT_EQ(result.err, "lockstep pack: " + message + "\n");
    EXPECT_FALSE(std::filesystem::exists(folder_ / "out"));
  }
}

// The most memory that a program has had so far, in MiB; 0 before it is running.
std::uint64_t peak_mib(pid_t pid) {
  const std::string process = "/proc/" + std::to_string(pid);
  std::error_code error;
  if (std::filesystem::read_symlink(process + "/exe", error).filename() != "lockstep") {
    return 0;
  }
  std::ifstream status(process + "/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) {
      return std::stoull(line.substr(6)) / 1024;
    }
  }
  return 0;
}

// What a rank holds of the input does not grow with it: two corpora, one thirty times the other, and a long line.
TEST_F(PackProgramTest, HoldsNoMoreMemoryThanItIsAllowed) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers hold memory of their own";
#endif
  const auto peak_mib_of = [&](const std::string& out, std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--tokenizer", "bytes", "--split", "1"});
    Process process(command(0, out, arguments));
    std::uint64_t peak = 0;
    while (process.is_running()) {
      peak = std::max(peak, peak_mib(process.pid()));
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    const ProcessResult result = process.wait();
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_GT(peak, 0U);
    return peak;
  };
  const std::string text = random_text(20'000'000, 1);
  write_input("a.txt", text.substr(0, 4'000'000));
  const std::uint64_t small = peak_mib_of("small", {"--format", "text", "--shard-mib", "16"});
  for (std::uint64_t i = 0; i < 6; ++i) {
    write_input("b" + std::to_string(i) + ".txt", text);
  }
  EXPECT_LE(peak_mib_of("large", {"--format", "text", "--shard-mib", "16"}), small + 16);
  std::filesystem::remove_all(folder_ / "in");
  std::filesystem::create_directory(folder_ / "in");
  write_input("a.jsonl", "{\"text\": \"" + std::string(std::size_t{40} << 20, 'x') + "\"}\n");
  EXPECT_LE(peak_mib_of("line", {"--format", "jsonl", "--memory", "41"}), small + 5 * 41);
}

TEST_F(PackProgramTest, GoesOnAfterSignalsAndKillsAtAnotherRankCount) {
  for (std::uint64_t i = 0; i < 24; ++i) {
    write_input("f" + std::to_string(i) + ".txt", random_text(900'000, i));
  }
  const std::vector<std::string> arguments = {"--format", "text", "--tokenizer", "bpe:512", "--shard-mib", "1"};
  ASSERT_EQ(run_process(command(0, "whole", arguments)).exit_code, 0);
  int interruptions = 0;
  for (const int signal : {SIGTERM, SIGKILL, SIGTERM, SIGKILL}) {
    const std::filesystem::path record = folder_ / fmt::format("out/.pack/unit-{:05}.json", 3 + 4 * interruptions);
    Process process(command(interruptions % 2 == 0 ? 0 : 2, "out", arguments));
    while (process.is_running() && !std::filesystem::exists(record)) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    process.send(signal);
    const ProcessResult result = process.wait();
    if (result.exit_code == 0) {
      break;  // faster than the signal
    }
    if (signal == SIGTERM && interruptions == 0) {
      EXPECT_EQ(result.exit_code, 75) << result.err;
      EXPECT_THAT(result.err, HasSubstr("the same command goes on from here"));
    }
    EXPECT_FALSE(std::filesystem::exists(folder_ / "out/train/dataset.json"));
    ++interruptions;
    // A killed mpirun takes its ranks with it, though not at the same instant.
    std::this_thread::sleep_for(std::chrono::milliseconds(signal == SIGKILL ? 500 : 0));
  }
  EXPECT_GE(interruptions, 1);
  const ProcessResult last = run_process(command(2, "out", arguments));
  EXPECT_EQ(last.exit_code, 0) << last.err;
  EXPECT_THAT(last.err, HasSubstr("parts were finished before"));
  expect_same_files(folder_ / "whole", folder_ / "out");
}

}  // namespace
}  // namespace lockstep
