// Which rank is slow: how long each was the only one that had not come to a call yet.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

namespace lockstep::server {

class Lateness {
 public:
  using Clock = std::chrono::steady_clock;
  struct Late {
    std::uint32_t rank;
    double waited_s;  // by the others, for this rank alone
    double of_s;      // in so much time
  };

  Lateness(std::size_t ranks, Clock::time_point now) : ranks_(ranks), waited_(ranks), begin_(now) {}

  // Once for each rank and call, calls in their order.
  void enter(std::uint32_t rank, std::uint64_t call, Clock::time_point now) {
    Arrivals& arrivals = calls_[call];
    if (++arrivals.count == ranks_) {
      if (ranks_ > 1) {
        waited_[rank] += now - arrivals.latest;
      }
      calls_.erase(call);
    } else {
      arrivals.latest = now;
    }
  }

  // Those that the others waited for during a quarter of the time and more, since the last call of this.
  [[nodiscard]] std::vector<Late> take(Clock::time_point now) {
    using Seconds = std::chrono::duration<double>;
    const double of_s = Seconds(now - begin_).count();
    std::vector<Late> late;
    for (std::size_t rank = 0; rank < ranks_; ++rank) {
      const double waited_s = Seconds(waited_[rank]).count();
      if (of_s > 0 && waited_s >= of_s / 4) {
        late.push_back({static_cast<std::uint32_t>(rank), waited_s, of_s});
      }
      waited_[rank] = {};
    }
    begin_ = now;
    return late;
  }

 private:
  struct Arrivals {
    std::size_t count = 0;
    Clock::time_point latest = {};
  };
  std::size_t ranks_;
  std::vector<Clock::duration> waited_;  // by rank
  std::map<std::uint64_t, Arrivals> calls_;
  Clock::time_point begin_;
};

}  // namespace lockstep::server
