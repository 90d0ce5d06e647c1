// Servers that are asked for signs of life.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <functional>
#include <thread>

#include "comm/server/pulse.h"
#include "tests/comm/server_job.h"

namespace lockstep {
namespace {

using server::Pulse;
using std::chrono::milliseconds;

bool comes_true(const std::function<bool()>& holds) {
  for (int i = 0; i < 2'000 && !holds(); ++i) {
    std::this_thread::sleep_for(milliseconds(5));
  }
  return holds();
}

class ServerPulseTest : public testing::Test {
 protected:
  ServerPulseTest() : job_(2, 2, options_), pulse_({.token = options_.token, .period = milliseconds(10)}) {}

  void watch(int i) { pulse_.watch(i, {"127.0.0.1", std::to_string(job_.server(static_cast<std::size_t>(i)).port())}); }
  [[nodiscard]] bool answers(int i) const {
    const auto silence = pulse_.silence_of(i);
    return silence && *silence < milliseconds(100);
  }

  server::Server::Options options_;
  test::ServerJob job_;
  Pulse pulse_;
};

TEST_F(ServerPulseTest, TellsWhoAnswers) {
  EXPECT_EQ(pulse_.silence_of(0), std::nullopt);
  watch(0);
  watch(1);
  EXPECT_TRUE(pulse_.is_watched(1));
  EXPECT_TRUE(comes_true([&] { return answers(0) && answers(1); }));
  job_.stop_server(1);
  EXPECT_TRUE(comes_true([&] { return pulse_.silence_of(1) >= milliseconds(300); }));
  EXPECT_TRUE(answers(0));
  job_.start_server(1);
  EXPECT_TRUE(comes_true([&] { return answers(1); }));
  pulse_.forget(1);
  EXPECT_FALSE(pulse_.is_watched(1));
  EXPECT_EQ(pulse_.silence_of(1), std::nullopt);
  // It is asked for no longer than that, and nobody was refused.
  EXPECT_TRUE(comes_true([&] { return answers(0); }));
  EXPECT_EQ(job_.said(), "");
}

// Whoever asks may stand still itself: stopped by Ctrl-Z, or with its machine.
TEST_F(ServerPulseTest, DoesNotCountTheTimeInWhichItStoodStill) {
  watch(0);
  EXPECT_TRUE(comes_true([&] { return answers(0); }));
  const std::string self = std::to_string(::getpid());
  const std::string stop = "(sleep 0.3; kill -STOP " + self + "; sleep 2; kill -CONT " + self + ") &";
  ASSERT_EQ(std::system(stop.c_str()), 0);
  auto last = std::chrono::steady_clock::now();
  bool stood_still = false;
  for (int i = 0; i < 3'000 && !stood_still; ++i) {
    std::this_thread::sleep_for(milliseconds(1));
    const auto now = std::chrono::steady_clock::now();
    stood_still = now - last > milliseconds(1'500);
    last = now;
    EXPECT_LT(pulse_.silence_of(0), milliseconds(1'000));
  }
  EXPECT_TRUE(stood_still);
  for (int i = 0; i < 100; ++i) {
    EXPECT_LT(pulse_.silence_of(0), milliseconds(1'000));
    std::this_thread::sleep_for(milliseconds(1));
  }
}

TEST_F(ServerPulseTest, IsNoWorker) {
  watch(0);
  EXPECT_TRUE(comes_true([&] { return answers(0); }));
  EXPECT_FALSE(job_.server().has_begun());
  const std::vector<std::string> errors = test::run_workers({0, 1}, [&](int rank) {
    const auto comm = make_server_communicator(job_.options(rank), 1);
    comm->barrier();
    comm->close();
  });
  EXPECT_THAT(errors, testing::Each(""));
  EXPECT_TRUE(job_.end(0).orderly);
}

TEST_F(ServerPulseTest, IsNothingForAServerThatNeverAnswered) {
  Pulse stranger({.period = milliseconds(10)});
  stranger.watch(0, {"127.0.0.1", std::to_string(job_.server().port())});
  std::this_thread::sleep_for(milliseconds(200));
  EXPECT_EQ(stranger.silence_of(0), std::nullopt);
}

}  // namespace
}  // namespace lockstep
