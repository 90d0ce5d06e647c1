// What a worker is doing, for those who watch it from outside: the board that its main thread writes on at each turn.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>

namespace lockstep::control {

enum class Phase : std::uint8_t {
  kStarting,   // before there is a configuration that all ranks agree on
  kLoading,    // datasets, checkpoint
  kData,       // waits for the loader
  kGradients,  // part: the micro-batch
  kReduce,     // waits for the sum of bucket `part`
  kExchange,   // losses and wishes of all ranks
  kUpdate,     // the optimizer's step
  kEvaluate,   // part: the batch
  kSnapshot,   // copies what a checkpoint will hold, or writes it where that is not done behind
  kSaving,     // waits for the writing of a checkpoint
  kEnding,
};

// Whether a worker in this phase may be waiting for other ranks: then it is not to blame for standing still.
[[nodiscard]] constexpr bool waits_for_others(Phase phase) {
  return phase == Phase::kReduce || phase == Phase::kExchange || phase == Phase::kStarting || phase == Phase::kEnding;
}

// "loading", "step 812: reduce bucket 3", "step 812: evaluate batch 7".
[[nodiscard]] std::string describe(Phase phase, std::int64_t step, std::int64_t part);

struct ActivityState {
  Phase phase = Phase::kStarting;
  std::int64_t step = 0;  // the one in progress, from 1
  std::int64_t part = 0;
  std::uint64_t changes = 0;  // of the phase, so far
  double seconds = 0;         // in this phase
  std::int64_t completed_step = 0;
  std::int64_t total_steps = 0;
  std::int64_t first_step = 0;  // completed when this worker began
  double loss = 0;              // of the last completed step
  double tokens_per_s = 0;
  std::int64_t saved_step = -1;  // of the newest checkpoint that this worker knows of; -1: none
  double save_seconds = 0;       // what the last save took, from the snapshot until it was published
};

// One thread writes, any thread reads. Writing takes some tens of nanoseconds and allocates nothing.
class Activity {
 public:
  void enter(Phase phase, std::int64_t step = 0, std::int64_t part = 0);
  void begin_run(std::int64_t completed_step, std::int64_t total_steps);
  void end_step(std::int64_t step, double loss, double tokens_per_s);
  void published(std::int64_t step, double seconds);

  [[nodiscard]] ActivityState now() const;

 private:
  mutable std::mutex mutex_;
  ActivityState state_;
  std::chrono::steady_clock::time_point entered_ = std::chrono::steady_clock::now();
};

}  // namespace lockstep::control
