// The least that an all-reduce between processes of one machine costs: each adds its share of everybody's numbers and
// writes the sums to everybody, between two barriers of a few instructions. No deadlines, no checks, no other way in:
// a yardstick, not a collective.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "comm/communicator.h"
#include "launcher/bench/yardstick.h"

namespace lockstep {

class SharedSum final : public Yardstick {
 public:
  // Whether the ranks are 2, 4 or 8 and share a node.
  [[nodiscard]] static bool is_possible(const Communicator& communicator);
  // Collective over such ranks: memory for `max_count` floats a rank, zero. Throws AgreedError(kNoSpace, kIo) when
  // there is none.
  SharedSum(Communicator& communicator, std::size_t max_count);
  ~SharedSum() override;
  SharedSum(const SharedSum&) = delete;
  SharedSum& operator=(const SharedSum&) = delete;

  [[nodiscard]] double time_sum(std::size_t count, int repeats) override;

 private:
  struct Head {
    alignas(64) std::atomic<std::uint32_t> arrived;
    alignas(64) std::atomic<std::uint32_t> round;
  };
  void barrier();
  [[nodiscard]] float* numbers_of(std::size_t rank) const;

  Communicator& communicator_;
  std::size_t rank_;
  std::size_t world_;
  std::size_t max_count_;
  std::size_t size_bytes_;
  void* memory_ = nullptr;
  Head* head_ = nullptr;
};

}  // namespace lockstep
