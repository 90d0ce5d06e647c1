// A thread that runs tasks one after another, in the order they were pushed: how collectives proceed while the caller
// computes.
//
// push() is called from one thread; a Work may be waited for on any. After a task threw, every later one fails with the
// same error without being run. A task reports sign_of_life() before each of its own waits, which have deadlines; where
// it stays silent for longer than `stuck_ms` all the same (inside a library that does not return), waiting for it
// throws Error(kTimeout), and the destructor leaves the thread behind. So tasks own what they use.
//
// The way to the thread and back takes longer than a short task. One that is pushed kWhenWaitedFor does not wake the
// thread: who waits for it runs it, unless a later task has set the thread going meanwhile. There nobody watches over
// its silence, so it must not call what may never return.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "comm/communicator.h"

namespace lockstep {

class WorkQueue {
 public:
  struct Limits {
    std::size_t tasks = 1024;  // push() waits while so many are queued
    int stuck_ms = 0;
  };

  explicit WorkQueue(Limits limits);
  // Fails the tasks that have not started and waits for the running one, a few seconds at most.
  ~WorkQueue();
  WorkQueue(const WorkQueue&) = delete;
  WorkQueue& operator=(const WorkQueue&) = delete;

  enum class Start : std::uint8_t { kAtOnce, kWhenWaitedFor };
  [[nodiscard]] Work push(std::function<void()> task, Start start = Start::kAtOnce);

  // Callable from the tasks, and safe after the queue is gone.
  [[nodiscard]] std::function<void()> sign_of_life() const;

 private:
  struct Shared;
  std::shared_ptr<Shared> shared_;
};

}  // namespace lockstep
