// A number in shared memory that one rank raises and others wait for.
#pragma once

#include <atomic>
#include <cstdint>

#include "comm/mpi/watch.h"

namespace lockstep::mpi {

// Lies in a shared window, zeroed, in a cache line of its own. Numbers grow by small steps and may wrap around.
class alignas(64) Flag {
 public:
  // Everything this rank wrote before is visible to who sees the number.
  void raise_to(std::uint32_t number);
  [[nodiscard]] bool has_reached(std::uint32_t number) const;
  // `owner` is the rank that raises the flag. Throws what Wait throws.
  void wait_for(std::uint32_t number, Watch& watch, int owner);

 private:
  std::atomic<std::uint32_t> number_ = 0;
  std::atomic<std::uint32_t> sleepers_ = 0;
};

static_assert(std::atomic<std::uint32_t>::is_always_lock_free);

}  // namespace lockstep::mpi
