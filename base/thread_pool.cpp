#include "base/thread_pool.h"

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace lockstep {

// One loop is one epoch. The owner publishes the loop, raises `epoch` and takes chunks itself; helpers spin for a short
// while between loops (a training step is a train of short loops) and then sleep on `epoch`.
struct ThreadPool::State {
  std::vector<std::thread> helpers;
  std::size_t chunks = 0;
  Call call = nullptr;
  const void* context = nullptr;
  alignas(64) std::atomic<std::uint32_t> epoch{0};
  alignas(64) std::atomic<std::size_t> next{0};
  alignas(64) std::atomic<int> busy{0};
  std::atomic<bool> stop{false};

  void take_chunks() {
    for (std::size_t chunk = next.fetch_add(1); chunk < chunks; chunk = next.fetch_add(1)) {
      call(context, chunk);
    }
  }

  void help() {
    std::uint32_t seen = 0;
    while (true) {
      constexpr int kSpins = 2000;
      for (int i = 0; i < kSpins && epoch.load(std::memory_order_acquire) == seen; ++i) {
        if (i % 64 == 63) {
          std::this_thread::yield();
        }
      }
      epoch.wait(seen, std::memory_order_acquire);
      seen = epoch.load(std::memory_order_acquire);
      if (stop.load()) {
        return;
      }
      take_chunks();
      busy.fetch_sub(1, std::memory_order_acq_rel);
    }
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  for (int i = 1; i < threads; ++i) {
    state_->helpers.emplace_back([this] { state_->help(); });
  }
}

ThreadPool::~ThreadPool() {
  state_->stop.store(true);
  state_->epoch.fetch_add(1);
  state_->epoch.notify_all();
  for (std::thread& helper : state_->helpers) {
    helper.join();
  }
}

int ThreadPool::threads() const { return static_cast<int>(state_->helpers.size()) + 1; }

void ThreadPool::run(std::size_t chunks, Call call, const void* context) {
  State& state = *state_;
  if (state.helpers.empty() || chunks < 2) {
    for (std::size_t chunk = 0; chunk < chunks; ++chunk) {
      call(context, chunk);
    }
    return;
  }
  state.chunks = chunks;
  state.call = call;
  state.context = context;
  state.next.store(0, std::memory_order_relaxed);
  state.busy.store(static_cast<int>(state.helpers.size()), std::memory_order_relaxed);
  state.epoch.fetch_add(1, std::memory_order_release);
  state.epoch.notify_all();
  state.take_chunks();
  for (int spins = 0; state.busy.load(std::memory_order_acquire) != 0; ++spins) {
    if (spins % 64 == 63) {
      std::this_thread::yield();
    }
  }
}

}  // namespace lockstep
