#include "comm/mpi/flag.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <ctime>

namespace lockstep::mpi {
namespace {

// The futex calls without FUTEX_PRIVATE_FLAG: the word is shared between processes.
void futex_wait(std::atomic<std::uint32_t>& word, std::uint32_t expected, std::chrono::microseconds timeout) {
  const timespec relative{static_cast<std::time_t>(timeout.count() / 1'000'000),
                          static_cast<long>(timeout.count() % 1'000'000 * 1000)};
  ::syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), FUTEX_WAIT, expected, &relative, nullptr, 0);
}

void futex_wake_all(std::atomic<std::uint32_t>& word) {
  ::syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

bool reached(std::uint32_t current, std::uint32_t number) { return static_cast<std::int32_t>(current - number) >= 0; }

}  // namespace

// Sequentially consistent on both sides: either the sleeper sees the new number, or this sees the sleeper.
void Flag::raise_to(std::uint32_t number) {
  number_.store(number);
  if (sleepers_.load() != 0) {
    futex_wake_all(number_);
  }
}

bool Flag::has_reached(std::uint32_t number) const { return reached(number_.load(std::memory_order_acquire), number); }

void Flag::wait_for(std::uint32_t number, Watch& watch, int owner) {
  if (has_reached(number)) {
    return;
  }
  Wait wait(watch, owner);
  while (!has_reached(number)) {
    const auto sleep = wait.next_sleep();
    if (sleep.count() == 0) {
      continue;
    }
    sleepers_.fetch_add(1);
    const std::uint32_t current = number_.load();
    if (!reached(current, number)) {
      futex_wait(number_, current, sleep);
    }
    sleepers_.fetch_sub(1);
  }
}

}  // namespace lockstep::mpi
