#include "comm/work_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "base/error.h"

namespace lockstep {
namespace {

constexpr WorkQueue::Limits kLimits{4, 60'000};

// Holds a task until the test lets it go.
struct Gate {
  std::atomic<bool> open = false;
  void pass() const {
    while (!open) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
};

TEST(WorkQueueTest, RunsTasksInOrder) {
  std::vector<int> order;
  {
    WorkQueue queue(kLimits);
    std::vector<Work> works;
    for (int i = 0; i < 100; ++i) {
      works.push_back(queue.push([&order, i] { order.push_back(i); }));
    }
  }
  ASSERT_EQ(order.size(), 100U);
  EXPECT_TRUE(std::is_sorted(order.begin(), order.end()));
}

TEST(WorkQueueTest, TellsWhetherATaskIsDoneWithoutWaiting) {
  Gate gate;
  WorkQueue queue(kLimits);
  Work work = queue.push([&] { gate.pass(); });
  EXPECT_FALSE(work.is_done());
  gate.open = true;
  work.wait();
  EXPECT_TRUE(work.is_done());
}

TEST(WorkQueueTest, RunsAShortTaskWhereItIsWaitedFor) {
  WorkQueue queue(kLimits);
  std::thread::id ran_on;
  Work work = queue.push([&] { ran_on = std::this_thread::get_id(); }, WorkQueue::Start::kWhenWaitedFor);
  work.wait();
  EXPECT_EQ(ran_on, std::this_thread::get_id());
  EXPECT_TRUE(work.is_done());
}

TEST(WorkQueueTest, RunsTheOthersWithoutBeingAskedFor) {
  std::atomic<bool> ran = false;
  WorkQueue queue(kLimits);
  const Work work = queue.push([&] { ran = true; });
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!ran && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::yield();
  }
  EXPECT_TRUE(ran);
}

TEST(WorkQueueTest, KeepsTheOrderOfShortAndLongTasks) {
  std::vector<int> order;
  {
    WorkQueue queue({100, 60'000});
    std::vector<Work> works;
    for (int i = 0; i < 100; ++i) {
      constexpr std::array kStarts = {WorkQueue::Start::kWhenWaitedFor, WorkQueue::Start::kAtOnce,
                                      WorkQueue::Start::kWhenWaitedFor, WorkQueue::Start::kWhenWaitedFor};
      const auto start = kStarts.at(static_cast<std::size_t>(i) % kStarts.size());
      works.push_back(queue.push([&order, i] { order.push_back(i); }, start));
      if (i % 7 == 0) {
        works.back().wait();
      }
    }
    // Out of order, as the destructors of Work may come.
    while (!works.empty()) {
      works.pop_back();
    }
  }
  ASSERT_EQ(order.size(), 100U);
  EXPECT_TRUE(std::is_sorted(order.begin(), order.end()));
}

TEST(WorkQueueTest, RunsShortTasksWhenManyAreQueuedOrSomebodyAsks) {
  WorkQueue queue(kLimits);
  std::atomic<int> ran = 0;
  std::vector<Work> works;
  for (int i = 0; i < 10; ++i) {  // more than the queue holds
    works.push_back(queue.push([&] { ++ran; }, WorkQueue::Start::kWhenWaitedFor));
  }
  while (!works.back().is_done()) {
    std::this_thread::yield();
  }
  EXPECT_EQ(ran, 10);
}

TEST(WorkQueueTest, FailsAfterAShortTaskThatFailed) {
  WorkQueue queue(kLimits);
  Work first = queue.push([] { fail(ErrorCode::kPeerLost, "gone"); }, WorkQueue::Start::kWhenWaitedFor);
  EXPECT_THROW(first.wait(), Error);
  Work second = queue.push([] {});
  EXPECT_THROW(second.wait(), Error);
}

TEST(WorkQueueTest, FailsEverythingAfterATaskThatFailed) {
  WorkQueue queue(kLimits);
  bool ran = false;
  Work first = queue.push([] { fail(ErrorCode::kPeerLost, "rank 7 is gone"); });
  Work second = queue.push([&] { ran = true; });
  for (Work* work : {&first, &second}) {
    try {
      work->wait();
      FAIL() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kPeerLost);
      EXPECT_STREQ(error.what(), "rank 7 is gone");
    }
  }
  EXPECT_FALSE(ran);
}

TEST(WorkQueueTest, WaitsInTheDestructorOfAWork) {
  std::atomic<bool> ran = false;
  WorkQueue queue(kLimits);
  {
    const Work work = queue.push([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      ran = true;
    });
  }
  EXPECT_TRUE(ran);
  {
    const Work failing = queue.push([] { fail(ErrorCode::kTimeout, "late"); });
  }
}

TEST(WorkQueueTest, AssigningToAWorkWaitsForTheOldOne) {
  std::atomic<bool> ran = false;
  WorkQueue queue(kLimits);
  Work work = queue.push([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    ran = true;
  });
  work = Work();
  EXPECT_TRUE(ran);
}

TEST(WorkQueueTest, FailsWhatHasNotStartedWhenItIsDestroyed) {
  Gate gate;
  Work running;
  Work waiting;
  {
    WorkQueue queue(kLimits);
    running = queue.push([&] { gate.pass(); });
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    waiting = queue.push([] {});
    // The destructor comes while the first task still runs.
    std::thread([&gate] {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      gate.open = true;
    }).detach();
  }
  running.wait();
  EXPECT_THROW(waiting.wait(), Error);
}

TEST(WorkQueueTest, GivesUpOnATaskThatIsSilentForTooLong) {
  auto gate = std::make_shared<Gate>();
  WorkQueue queue({4, 300});
  Work work = queue.push([gate] { gate->pass(); });
  const auto start = std::chrono::steady_clock::now();
  try {
    work.wait();
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kTimeout);
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
  gate->open = true;
}

TEST(WorkQueueTest, IsPatientWithATaskThatGivesSignsOfLife) {
  WorkQueue queue({4, 300});
  Work work = queue.push([sign = queue.sign_of_life()] {
    for (int i = 0; i < 10; ++i) {
      sign();
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
  });
  work.wait();
}

}  // namespace
}  // namespace lockstep
