#include "launcher/signals.h"

#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <thread>

namespace lockstep {
namespace {

class StopSignalTest : public testing::TestWithParam<int> {};

TEST_P(StopSignalTest, SetsAFlagOnTheFirstSignal) {
  StopSignal stop;
  stop.listen();
  EXPECT_FALSE(stop.requested());
  std::raise(GetParam());
  EXPECT_TRUE(stop.requested());
  EXPECT_EQ(stop.number(), GetParam());
}

TEST_P(StopSignalTest, TakesRepetitionsWithinAMomentForTheSameRequest) {
  StopSignal stop;
  stop.listen();
  std::raise(SIGTERM);
  std::raise(GetParam());
  std::raise(SIGINT);
  EXPECT_EQ(stop.number(), SIGTERM);
}

TEST_P(StopSignalTest, EndsTheProcessOnASecondSignal) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        StopSignal stop;
        stop.listen();
        std::raise(SIGINT);
        std::this_thread::sleep_for(std::chrono::milliseconds(600));
        std::raise(GetParam());
        std::exit(0);
      },
      testing::KilledBySignal(GetParam()), "");
}

TEST_P(StopSignalTest, CountsASecondSignalWhereAskedTo) {
  StopSignal stop;
  stop.listen(StopSignal::Second::kIsCounted);
  std::raise(SIGTERM);
  std::raise(GetParam());
  EXPECT_FALSE(stop.repeated());
  std::this_thread::sleep_for(std::chrono::milliseconds(600));
  std::raise(GetParam());
  EXPECT_TRUE(stop.repeated());
  EXPECT_EQ(stop.number(), SIGTERM);
}

TEST_P(StopSignalTest, LeavesSignalsAloneBeforeAndAfter) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        StopSignal never_listens;
        std::raise(GetParam());
        std::exit(0);
      },
      testing::KilledBySignal(GetParam()), "");
  EXPECT_EXIT(
      {
        {
          StopSignal stop;
          stop.listen();
        }
        std::raise(GetParam());
        std::exit(0);
      },
      testing::KilledBySignal(GetParam()), "");
}

INSTANTIATE_TEST_SUITE_P(Signals, StopSignalTest, testing::Values(SIGINT, SIGTERM, SIGUSR1));

}  // namespace
}  // namespace lockstep
