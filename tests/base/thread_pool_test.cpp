#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace lockstep {
namespace {

class ThreadPoolTest : public testing::TestWithParam<int> {};

TEST_P(ThreadPoolTest, RunsEveryChunkExactlyOnce) {
  ThreadPool pool(GetParam());
  EXPECT_EQ(pool.threads(), GetParam());
  for (const std::size_t chunks : {0U, 1U, 2U, 3U, 100U, 1000U}) {
    std::vector<std::atomic<int>> runs(chunks);
    pool.parallel_for(chunks, [&](std::size_t chunk) { runs[chunk].fetch_add(1); });
    for (const auto& count : runs) {
      EXPECT_EQ(count.load(), 1);
    }
  }
}

TEST_P(ThreadPoolTest, SeesInEachLoopWhatTheLoopBeforeWrote) {
  ThreadPool pool(GetParam());
  std::vector<int> values(64, 0);
  for (int loop = 0; loop < 500; ++loop) {
    pool.parallel_for(values.size(), [&](std::size_t i) { values[i] += static_cast<int>(i); });
    if (loop % 100 == 0) {  // long enough for the helpers to fall asleep
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(values[i], 500 * static_cast<int>(i));
  }
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, testing::Values(1, 2, 4, 7));

}  // namespace
}  // namespace lockstep
