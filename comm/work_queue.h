// A thread that runs tasks one after another, in the order they were pushed: how collectives proceed while the caller
// computes.
//
// push() is called from one thread; a Work may be waited for on any. After a task threw, every later one fails with the
// same error without being run. A task reports sign_of_life() when a wait of its own gets long, and such waits have
// deadlines; where it stays silent for longer than `stuck_ms` all the same (inside a library that does not return),
// waiting for it throws Error(kTimeout), and the destructor leaves the thread behind. So tasks own what they use.
//
// The way to the thread and back takes longer than a short task does. So a task may be pushed without waking the thread
// (kWhenWaitedFor): it lies there until the thread is awake for another, until somebody asks is_done(), or until
// somebody waits for it, who then runs it himself when it is the next and nobody has begun. Where a task runs in its
// waiter nobody watches over its silence.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

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
  // `task` is called once, without arguments, and destroyed before its Work is done.
  template <typename Task>
  [[nodiscard]] Work push(Task task, Start start = Start::kAtOnce) {
    return push_item(std::make_shared<ItemOf<Task>>(std::move(task)), start);
  }

  // Callable from the tasks, and safe after the queue is gone.
  [[nodiscard]] std::function<void()> sign_of_life() const;

 private:
  struct Shared;
  class Item;
  template <typename Task>
  class ItemOf;

  Work push_item(std::shared_ptr<Item> item, Start start);

  std::shared_ptr<Shared> shared_;
};

// A task and its outcome, in one piece of memory: short tasks are counted in tenths of a microsecond.
class WorkQueue::Item : public Work::State {
 public:
  void wait() final;
  [[nodiscard]] bool is_done() const final;

 private:
  friend class WorkQueue;
  friend struct Shared;

  [[nodiscard]] bool is_finished() const { return done_.load(std::memory_order_acquire); }
  virtual void run_task() = 0;
  virtual void drop_task() = 0;

  std::shared_ptr<Shared> shared_;
  Start start_ = Start::kAtOnce;
  std::atomic<bool> done_ = false;
  std::exception_ptr error_;  // set before done_
};

template <typename Task>
class WorkQueue::ItemOf final : public Item {
 public:
  explicit ItemOf(Task task) : task_(std::move(task)) {}

 private:
  void run_task() override { (*task_)(); }
  void drop_task() override { task_.reset(); }

  std::optional<Task> task_;
};

}  // namespace lockstep
