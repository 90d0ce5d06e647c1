#include "tests/cuda_emulator/block.h"

#include <alloca.h>

#include <algorithm>
#include <boost/context/fiber.hpp>
#include <boost/context/protected_fixedsize_stack.hpp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string_view>
#include <utility>
#include <vector>

namespace lockstep::cuda_emulator {
namespace {

namespace context = boost::context;

constexpr unsigned kWarp = 32;
constexpr std::size_t kCacheLine = 64;
constexpr std::size_t kStackBytes = std::size_t{256} << 10;

[[noreturn]] void give_up_on(const char* kernel, const char* what) {
  std::fprintf(stderr, "cuda_emulator: kernel \"%s\": %s\n", kernel, what);
  std::abort();
}

enum class Waiting : std::uint8_t { kNo, kForWarp, kForBlock };

struct Thread {
  dim3 index;
  Waiting waiting = Waiting::kNo;
  bool has_ended = false;
  std::uint64_t exchanges = 0;    // so far
  std::uint64_t offered[2] = {};  // in the even and in the odd ones
};

// What its lanes bring to calls that all of them hear all of.
struct Warp {
  std::uint64_t exchanges = 0;  // of all lanes, so far
  alignas(16) std::byte offered[2][kWarp * kMostExchangedBytes];
};

class Block;

// Runs threads, one after another, until one has to wait; then it is that thread's until the thread ends.
struct Carrier {
  context::fiber fiber;      // while it does not run
  context::fiber scheduler;  // while it does
  Thread* thread = nullptr;
};

// The block that the calling thread of the CPU runs.
class Block {
 public:
  void run(const char* name, const Grid& grid, const std::function<void()>& body) {
    name_ = name;
    grid_ = &grid;
    body_ = &body;
    threads_.assign(std::size_t{grid.threads.x} * grid.threads.y * grid.threads.z, {});
    warps_.resize((threads_.size() + kWarp - 1) / kWarp);
    set_order();
    // Memory that holds what no kernel may read before it is written.
    shared_ = std::make_unique<std::byte[]>(grid.shared_bytes + alignof(std::max_align_t));
    for (at_.z = 0; at_.z < grid.blocks.z; ++at_.z) {
      for (at_.y = 0; at_.y < grid.blocks.y; ++at_.y) {
        for (at_.x = 0; at_.x < grid.blocks.x; ++at_.x) {
          run_block(grid);
        }
      }
    }
  }

  [[nodiscard]] bool is_reordered() const { return is_reordered_; }
  [[nodiscard]] const Thread& current() const { return *carrier_->thread; }
  [[nodiscard]] const dim3& block() const { return block_; }
  [[nodiscard]] const Grid& grid() const { return *grid_; }
  [[nodiscard]] char* shared() { return reinterpret_cast<char*>(shared_.get()); }

  void wait_for_block() { wait(Waiting::kForBlock); }

  std::uint64_t exchange_in_warp(std::uint64_t value, int distance) {
    Thread& own = *carrier_->thread;
    const std::size_t index = static_cast<std::size_t>(&own - threads_.data());
    ++warps_[index / kWarp].exchanges;
    const std::size_t turn = own.exchanges++ % 2;
    own.offered[turn] = value;
    wait(Waiting::kForWarp);
    const std::size_t other = index ^ static_cast<std::size_t>(distance);
    if (other >= threads_.size() || threads_[other].exchanges < own.exchanges) {
      give_up("a lane takes a value from one that is not there");
    }
    return threads_[other].offered[turn];
  }

  const void* gather_from_warp(const void* value, std::size_t size_bytes) {
    Thread& own = *carrier_->thread;
    const std::size_t index = static_cast<std::size_t>(&own - threads_.data());
    Warp& warp = warps_[index / kWarp];
    ++warp.exchanges;
    std::byte* const offered = warp.offered[own.exchanges++ % 2];
    std::memcpy(offered + index % kWarp * size_bytes, value, size_bytes);
    wait(Waiting::kForWarp);
    // The first lane that goes on sees whether one is missing.
    if (warp.exchanges < kWarp * own.exchanges) {
      give_up("a lane takes what all lanes bring, and not all are there");
    }
    return offered;
  }

  [[noreturn]] void give_up(const char* what) const { give_up_on(name_, what); }

 private:
  // `at_` of the grid's blocks, or the one as far from its end in another order.
  void run_block(const Grid& grid) {
    block_ =
        is_reordered_ ? dim3(grid.blocks.x - 1 - at_.x, grid.blocks.y - 1 - at_.y, grid.blocks.z - 1 - at_.z) : at_;
    std::memset(shared_.get(), 0xFF, grid_->shared_bytes);
    const dim3& size = grid_->threads;
    for (std::size_t i = 0; i < threads_.size(); ++i) {
      threads_[i] = {};
      threads_[i].index = dim3(static_cast<unsigned>(i % size.x), static_cast<unsigned>(i / size.x % size.y),
                               static_cast<unsigned>(i / size.x / size.y));
    }
    for (Warp& warp : warps_) {
      warp.exchanges = 0;
    }
    next_ = 0;
    ended_ = 0;
    waiting_.resize(warps_.size());
    for (std::size_t ended_before = 0; ended_ < threads_.size(); ended_before = ended_) {
      for (std::size_t turn = 0; turn < waiting_.size(); ++turn) {
        run_warp(turn);
      }
      if (!release_block() && ended_ == ended_before) {
        give_up("threads wait at a barrier that the others do not come to");
      }
    }
  }

  // The warp that comes `turn`-th in order_, up to where all of its threads have ended or wait for other warps.
  void run_warp(std::size_t turn) {
    started_warps_end_ = std::min((turn + 1) * kWarp, threads_.size());
    while (next_ < started_warps_end_) {  // those that wait keep their carriers
      resume(idle_carrier(), turn);
    }
    do {
      for (Carrier* const carrier : std::exchange(waiting_[turn], {})) {
        if (carrier->thread->waiting != Waiting::kNo) {
          waiting_[turn].push_back(carrier);
        } else {
          resume(carrier, turn);
        }
      }
    } while (release_warp(waiting_[turn]));
  }

  // Lets the threads of a warp go on that have come together.
  bool release_warp(const std::vector<Carrier*>& warp) {
    const auto waits = [](const Carrier* carrier) { return carrier->thread->waiting == Waiting::kForWarp; };
    if (warp.empty() || !std::ranges::all_of(warp, waits)) {
      return false;
    }
    for (Carrier* const carrier : warp) {
      carrier->thread->waiting = Waiting::kNo;
    }
    return true;
  }

  bool release_block() {
    const auto waits = [](const Thread& thread) { return thread.has_ended || thread.waiting == Waiting::kForBlock; };
    if (!std::ranges::all_of(threads_, waits)) {
      return false;
    }
    for (Thread& thread : threads_) {
      thread.waiting = Waiting::kNo;
    }
    return true;
  }

  Carrier* idle_carrier() {
    if (idle_.empty()) {
      carriers_.push_back(std::make_unique<Carrier>());
      Carrier* const carrier = carriers_.back().get();
      carrier->fiber = context::fiber(std::allocator_arg, context::protected_fixedsize_stack(kStackBytes),
                                      [this, carrier](context::fiber&& scheduler) {
                                        carrier->scheduler = std::move(scheduler);
                                        // Or the tops of all stacks share one set of the cache.
                                        static_cast<void>(alloca(carriers_.size() % kWarp * kCacheLine));
                                        carry(*carrier);
                                        return std::move(carrier->scheduler);
                                      });
      return carrier;
    }
    Carrier* const carrier = idle_.back();
    idle_.pop_back();
    return carrier;
  }

  void resume(Carrier* carrier, std::size_t turn) {
    turn_ = turn;
    carrier_ = carrier;
    carrier->fiber = std::move(carrier->fiber).resume();
  }

  void give_way(Carrier& carrier) { carrier.scheduler = std::move(carrier.scheduler).resume(); }

  void carry(Carrier& carrier) {
    for (;;) {
      while (next_ < started_warps_end_) {
        carrier.thread = &threads_[order_[next_++]];
        (*body_)();
        carrier.thread->has_ended = true;
        ++ended_;
      }
      idle_.push_back(&carrier);
      give_way(carrier);
    }
  }

  void wait(Waiting waiting) {
    Carrier& carrier = *carrier_;
    carrier.thread->waiting = waiting;
    waiting_[turn_].push_back(&carrier);
    give_way(carrier);
  }

  void set_order() {
    order_.resize(threads_.size());
    std::iota(order_.begin(), order_.end(), std::size_t{0});
    const char* wanted = std::getenv("LOCKSTEP_EMULATOR_ORDER");
    is_reordered_ = wanted != nullptr;
    if (wanted == nullptr || order_.size() % kWarp != 0) {
      return;
    }
    if (std::string_view(wanted) == "reverse") {
      std::reverse(order_.begin(), order_.end());
      return;
    }
    std::mt19937 random(static_cast<unsigned>(std::atoi(wanted)));
    std::vector<std::size_t> warps(order_.size() / kWarp);
    std::iota(warps.begin(), warps.end(), std::size_t{0});
    std::shuffle(warps.begin(), warps.end(), random);
    order_.clear();
    for (const std::size_t warp : warps) {
      const auto begin = static_cast<std::ptrdiff_t>(order_.size());
      for (std::size_t i = warp * kWarp; i < (warp + 1) * kWarp; ++i) {
        order_.push_back(i);
      }
      std::shuffle(order_.begin() + begin, order_.end(), random);
    }
  }

  const char* name_ = "";
  const Grid* grid_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  dim3 at_;
  dim3 block_;
  bool is_reordered_ = false;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<std::size_t> order_;     // in which threads start, warp by warp
  std::size_t started_warps_end_ = 0;  // of order_
  std::size_t next_ = 0;               // of order_
  std::size_t ended_ = 0;
  std::unique_ptr<std::byte[]> shared_;
  std::vector<std::unique_ptr<Carrier>> carriers_;
  std::vector<Carrier*> idle_;
  std::vector<std::vector<Carrier*>> waiting_;  // by the warps' turns
  std::size_t turn_ = 0;                        // of the warp that runs
  Carrier* carrier_ = nullptr;                  // that runs
};

// Never destroyed: its fibers have no end.
Block& this_block() {
  thread_local Block& block = *new Block;
  return block;
}

}  // namespace

void run_grid(const char* name, const Grid& grid, const std::function<void()>& thread) {
  this_block().run(name, grid, thread);
}

const dim3& thread_index() { return this_block().current().index; }
const dim3& block_index() { return this_block().block(); }
const dim3& block_size() { return this_block().grid().threads; }
const dim3& grid_size() { return this_block().grid().blocks; }
char* shared_memory() { return this_block().shared(); }
void wait_for_block() { this_block().wait_for_block(); }
std::uint64_t exchange_in_warp(std::uint64_t value, int distance) {
  return this_block().exchange_in_warp(value, distance);
}
const void* gather_from_warp(const void* own, std::size_t size_bytes) {
  return this_block().gather_from_warp(own, size_bytes);
}
void give_up(const char* what) { this_block().give_up(what); }

bool is_reordered() { return this_block().is_reordered(); }

}  // namespace lockstep::cuda_emulator
