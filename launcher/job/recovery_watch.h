// Which processes were started again, and whether the job has got on since.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "launcher/job/attempts.h"

namespace lockstep {

class RecoveryWatch {
 public:
  using Clock = std::chrono::steady_clock;

  // What is heard of steps is at most `delay` old.
  explicit RecoveryWatch(std::chrono::milliseconds delay) : delay_(delay) {}

  // `noticed`: when it was known to be lost. From now on the job is recovering.
  void add(Replacement replacement, Clock::time_point noticed, Clock::time_point now);
  // `step`: completed, as heard until now. Returns what has been made up for: the job got on after the last start.
  [[nodiscard]] std::vector<Replacement> note(std::int64_t step, Clock::time_point now);
  // What has not been made up for, which is then forgotten.
  [[nodiscard]] std::vector<Replacement> give_up();

  [[nodiscard]] bool is_open() const { return !open_.empty(); }
  [[nodiscard]] bool has(const std::string& process) const;
  // Their causes, one after the other.
  [[nodiscard]] std::string causes() const;

 private:
  struct Open {
    Replacement replacement;
    Clock::time_point noticed;
  };
  const std::chrono::milliseconds delay_;
  std::vector<Open> open_;
  Clock::time_point settled_at_;      // heartbeats that come later were sent after the last start
  std::optional<std::int64_t> step_;  // completed then
};

}  // namespace lockstep
