#include "comm/work_queue.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "base/error.h"

namespace lockstep {
namespace {

using Clock = std::chrono::steady_clock;

// How long the destructor waits for a task that was told to stop.
constexpr auto kGrace = std::chrono::seconds(5);
// How often a waiting caller looks whether the thread is stuck.
constexpr auto kStuckCheck = std::chrono::milliseconds(250);

}  // namespace

struct WorkQueue::Shared {
  explicit Shared(Limits queue_limits) : limits(queue_limits) {}

  void note_sign_of_life() { last_sign_ns = Clock::now().time_since_epoch().count(); }

  template <typename Condition>
  void wait_until(const Condition& condition) {
    std::unique_lock lock(mutex);
    while (!changed.wait_for(lock, kStuckCheck, condition)) {
      const auto silent = Clock::now().time_since_epoch() - Clock::duration(last_sign_ns.load());
      if (running && silent > std::chrono::milliseconds(limits.stuck_ms)) {
        fail(ErrorCode::kTimeout, "comm: MPI has not returned from a call for {} s; another rank may be gone",
             std::chrono::duration_cast<std::chrono::seconds>(silent).count());
      }
    }
  }

  // Runs the item here when it is the next one and nobody is at work; otherwise waits until the thread has run it.
  void run_or_wait(const Item& item) {
    if (item.is_finished()) {
      return;
    }
    if (item.start_ != Start::kAtOnce) {
      std::unique_lock lock(mutex);
      if (!running && !stopping && !queue.empty() && queue.front().get() == &item) {
        const std::shared_ptr<Item> taken = take_next();
        lock.unlock();
        execute(*taken);
        return;
      }
    }
    wake();
    wait_until([&item] { return item.is_finished(); });
  }

  bool try_push(const std::shared_ptr<Item>& item) {
    const std::scoped_lock lock(mutex);
    if (queue.size() == limits.tasks) {
      return false;
    }
    queue.push_back(item);
    return true;
  }

  // The thread shall run what is queued, up to the last item.
  void wake() {
    {
      const std::scoped_lock lock(mutex);
      if (awake || queue.empty()) {
        return;
      }
      awake = true;
    }
    thread_wanted.notify_one();
  }

  // Under the lock.
  std::shared_ptr<Item> take_next() {
    std::shared_ptr<Item> item = std::move(queue.front());
    queue.pop_front();
    running = true;
    note_sign_of_life();
    return item;
  }

  // The item that was taken last: one at a time, so the error needs no lock of its own.
  void execute(Item& item) {
    try {
      if (first_error) {
        std::rethrow_exception(first_error);
      }
      item.run_task();
    } catch (...) {
      first_error = std::current_exception();
      item.error_ = first_error;
    }
    item.drop_task();
    bool thread_goes_on = false;
    {
      const std::scoped_lock lock(mutex);
      running = false;
      awake = awake && !queue.empty();
      thread_goes_on = awake || stopping;
      item.done_.store(true, std::memory_order_release);
    }
    if (thread_goes_on) {
      thread_wanted.notify_one();
    }
    changed.notify_all();
  }

  void run() {
    for (;;) {
      std::shared_ptr<Item> item;
      {
        std::unique_lock lock(mutex);
        thread_wanted.wait(lock, [this] { return !running && (stopping || (awake && !queue.empty())); });
        if (stopping) {
          break;
        }
        item = take_next();
      }
      changed.notify_all();
      execute(*item);
    }
    const std::scoped_lock lock(mutex);
    for (const auto& item : queue) {
      item->drop_task();
      item->error_ =
          std::make_exception_ptr(Error(ErrorCode::kPeerLost, "comm: the communicator was destroyed before"));
      item->done_.store(true, std::memory_order_release);
    }
    queue.clear();
    ended = true;
    changed.notify_all();
  }

  const Limits limits;
  std::mutex mutex;
  std::condition_variable thread_wanted;
  std::condition_variable changed;  // for everybody else
  std::deque<std::shared_ptr<Item>> queue;
  bool stopping = false;
  bool awake = false;    // the thread is to run what is queued
  bool running = false;  // a task, here or where it was waited for
  bool ended = false;
  std::atomic<Clock::rep> last_sign_ns = 0;
  std::exception_ptr first_error;  // of who is running
  std::thread thread;
};

WorkQueue::WorkQueue(Limits limits) : shared_(std::make_shared<Shared>(limits)) {
  shared_->thread = std::thread([shared = shared_] { shared->run(); });
}

WorkQueue::~WorkQueue() {
  bool ended = false;
  {
    std::unique_lock lock(shared_->mutex);
    shared_->stopping = true;
    shared_->thread_wanted.notify_one();
    ended = shared_->changed.wait_for(lock, kGrace, [this] { return shared_->ended; });
  }
  if (ended) {
    shared_->thread.join();
  } else {
    shared_->thread.detach();
  }
}

Work WorkQueue::push_item(std::shared_ptr<Item> item, Start start) {
  item->shared_ = shared_;
  item->start_ = start;
  if (!shared_->try_push(item)) {
    shared_->wake();
    shared_->wait_until([&] { return shared_->queue.size() < shared_->limits.tasks; });
    shared_->try_push(item);
  }
  if (start != Start::kWhenWaitedFor) {
    shared_->wake();
  }
  return Work(std::move(item));
}

void WorkQueue::Item::wait() {
  shared_->run_or_wait(*this);
  if (error_) {
    std::rethrow_exception(error_);
  }
}

bool WorkQueue::Item::is_done() const {
  if (is_finished()) {
    return true;
  }
  shared_->wake();
  return false;
}

std::function<void()> WorkQueue::sign_of_life() const {
  return [weak = std::weak_ptr<Shared>(shared_)] {
    if (const auto shared = weak.lock()) {
      shared->note_sign_of_life();
    }
  };
}

}  // namespace lockstep
