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
  struct Item {
    std::function<void()> task;
    std::atomic<bool> done = false;
    std::exception_ptr error;  // set before `done`
  };

  class ItemState final : public Work::State {
   public:
    ItemState(std::shared_ptr<Shared> shared, std::shared_ptr<Item> item)
        : shared_(std::move(shared)), item_(std::move(item)) {}
    void wait() override {
      shared_->wait_until([this] { return item_->done.load(std::memory_order_acquire); });
      if (item_->error) {
        std::rethrow_exception(item_->error);
      }
    }
    [[nodiscard]] bool is_done() const override { return item_->done.load(std::memory_order_acquire); }

   private:
    std::shared_ptr<Shared> shared_;
    std::shared_ptr<Item> item_;
  };

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

  void run() {
    for (;;) {
      std::shared_ptr<Item> item;
      {
        std::unique_lock lock(mutex);
        changed.wait(lock, [this] { return stopping || !queue.empty(); });
        if (stopping) {
          break;
        }
        item = queue.front();
        queue.pop_front();
        running = true;
        note_sign_of_life();
      }
      changed.notify_all();
      try {
        if (first_error) {
          std::rethrow_exception(first_error);
        }
        item->task();
      } catch (...) {
        first_error = std::current_exception();
        item->error = first_error;
      }
      item->task = nullptr;
      {
        const std::scoped_lock lock(mutex);
        running = false;
        item->done.store(true, std::memory_order_release);
      }
      changed.notify_all();
    }
    const std::scoped_lock lock(mutex);
    for (const auto& item : queue) {
      item->task = nullptr;
      item->error = std::make_exception_ptr(Error(ErrorCode::kPeerLost, "comm: the communicator was destroyed before"));
      item->done.store(true, std::memory_order_release);
    }
    queue.clear();
    ended = true;
    changed.notify_all();
  }

  const Limits limits;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::shared_ptr<Item>> queue;
  bool stopping = false;
  bool running = false;
  bool ended = false;
  std::atomic<Clock::rep> last_sign_ns = 0;
  std::exception_ptr first_error;  // the thread's own
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
    shared_->changed.notify_all();
    ended = shared_->changed.wait_for(lock, kGrace, [this] { return shared_->ended; });
  }
  if (ended) {
    shared_->thread.join();
  } else {
    shared_->thread.detach();
  }
}

Work WorkQueue::push(std::function<void()> task) {
  auto item = std::make_shared<Shared::Item>();
  item->task = std::move(task);
  shared_->wait_until([this] { return shared_->queue.size() < shared_->limits.tasks; });
  {
    const std::scoped_lock lock(shared_->mutex);
    shared_->queue.push_back(item);
  }
  shared_->changed.notify_all();
  return Work(std::make_unique<Shared::ItemState>(shared_, std::move(item)));
}

std::function<void()> WorkQueue::sign_of_life() const {
  return [weak = std::weak_ptr<Shared>(shared_)] {
    if (const auto shared = weak.lock()) {
      shared->note_sign_of_life();
    }
  };
}

}  // namespace lockstep
