// A thread that runs tasks one after another, in the order they were pushed: how collectives proceed while the caller
// computes.
//
// push() is called from one thread; a Work may be waited for on any. After a task threw, every later one fails with the
// same error without being run. A task reports sign_of_life() when a wait of its own gets long, and such waits have
// deadlines; where it stays silent for longer than `stuck_ms` all the same (inside a library that does not return),
// waiting for it throws Error(kTimeout), and the destructor leaves the thread behind. So tasks own what they use.
//
// The way to the thread and back takes longer than a short task does, so who waits for one may run it himself, when it
// is the next and nobody has begun: after the thread was woken for it (kAtOnceHereOrThere) or without waking the thread
// (kWhenWaitedFor: it then lies there until somebody waits for it or asks is_done(), or until the thread is awake for
// another). Where a task runs in its waiter nobody watches over its silence.
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

  enum class Start : std::uint8_t { kAtOnce, kAtOnceHereOrThere, kWhenWaitedFor };
  [[nodiscard]] Work push(std::function<void()> task, Start start = Start::kAtOnce);

  // Callable from the tasks, and safe after the queue is gone.
  [[nodiscard]] std::function<void()> sign_of_life() const;

 private:
  struct Shared;
  std::shared_ptr<Shared> shared_;
};

}  // namespace lockstep
