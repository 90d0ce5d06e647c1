#include "base/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "tests/support/captured_log.h"

namespace lockstep {
namespace {

constexpr const char* kErase = "\r\x1b[K";

int eighty() { return 80; }
int ten() { return 10; }

TEST(LogTest, WritesALineForEachMessageAndNamesItsLevel) {
  CapturedLog captured;
  captured.log().debug("hidden");
  captured.log().info("{} of {}", 3, 4);
  captured.log().warning("low disk");
  captured.log().error("lost");
  EXPECT_EQ(captured.take(), "3 of 4\nwarning: low disk\nerror: lost\n");
}

TEST(LogTest, WritesOnlyWhatReachesTheLevel) {
  CapturedLog captured({.level = LogLevel::kDebug});
  captured.log().debug("shown");
  EXPECT_EQ(captured.take(), "debug: shown\n");
  CapturedLog quiet({.level = LogLevel::kError});
  quiet.log().warning("hidden");
  EXPECT_EQ(quiet.take(), "");
}

TEST(LogTest, LetsOtherRanksThanZeroSpeakOnlyOfTroubleAndNamesThem) {
  CapturedLog captured({.rank = 3, .world_size = 4});
  EXPECT_FALSE(captured.log().prints(LogLevel::kInfo));
  captured.log().info("rank 0 says it");
  captured.log().warning("slow disk");
  EXPECT_EQ(captured.take(), "[rank 3] warning: slow disk\n");
}

TEST(LogTest, NamesEveryRankWhenAllSpeak) {
  CapturedLog captured({.rank = 1, .world_size = 2, .all_ranks = true});
  captured.log().info("hello");
  EXPECT_EQ(captured.take(), "[rank 1] hello\n");
}

TEST(LogTest, KeepsTheStatusBelowTheLines) {
  CapturedLog captured({.columns = eighty});
  captured.log().set_status("10%");
  EXPECT_EQ(captured.take(), std::string(kErase) + "10%");
  captured.log().info("saved");
  EXPECT_EQ(captured.take(), std::string(kErase) + "saved\n" + kErase + "10%");
  captured.log().clear_status();
  EXPECT_EQ(captured.take(), kErase);
  captured.log().info("done");
  EXPECT_EQ(captured.take(), "done\n");
}

TEST(LogTest, CutsTheStatusToTheTerminal) {
  CapturedLog captured({.columns = ten});
  captured.log().set_status("0123456789abc");
  EXPECT_EQ(captured.take(), std::string(kErase) + "012345678");
}

TEST(LogTest, DrawsNoStatusWithoutATerminalOrOnAnotherRank) {
  CapturedLog elsewhere;
  elsewhere.log().set_status("10%");
  elsewhere.log().info("line");
  EXPECT_EQ(elsewhere.take(), "line\n");
  CapturedLog other({.rank = 1, .world_size = 2, .columns = eighty});
  other.log().set_status("10%");
  EXPECT_EQ(other.log().columns(), 0);
  EXPECT_EQ(other.take(), "");
}

TEST(LogTest, KeepsLinesOfSeveralThreadsWhole) {
  CapturedLog captured;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&captured, t] {
      for (int i = 0; i < 200; ++i) {
        captured.log().info("{}{}{}{}", t, t, t, t);
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  const std::string text = captured.take();
  ASSERT_EQ(text.size(), 4U * 200 * 5);
  for (std::size_t i = 0; i < text.size(); i += 5) {
    const std::string line = text.substr(i, 5);
    EXPECT_EQ(line, std::string(4, line[0]) + "\n");
  }
}

}  // namespace
}  // namespace lockstep
