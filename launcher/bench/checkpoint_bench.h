// What a save costs the training beside it, and how fast it is by itself, beside plain files.
#pragma once

#include <cstdint>
#include <functional>

#include "comm/communicator.h"
#include "launcher/bench/measure.h"

namespace lockstep {

// Medians over the rounds, by rank 0's clock.
struct CheckpointBenchResult {
  std::uint64_t size_bytes = 0;  // of a checkpoint: all ranks' files

  // With the training beside it.
  double step_ms = 0;       // of a step that no save accompanies
  double exposed_ms = 0;    // by which one save makes the training longer
  double copy_ms = 0;       // of these, what begin() takes, on the slowest rank
  double of_100_steps = 0;  // exposed_ms over the time of 100 steps, in the same rounds
  double save_steps = 0;    // from begin() until all ranks know the save's outcome, ...
  double save_ms = 0;       // ... to the end of that step

  // With nothing beside it.
  double idle_ms = 0;              // from begin() until it is published
  double bytes_per_s = 0;          // of all ranks together
  double ceiling_bytes_per_s = 0;  // of plain files: the same sizes, written by the same ranks, synced at their ends
  double of_ceiling = 0;           // median of the rounds' ratios
};

// Collective. Steps and saves are TrainLoop's, on batches as bench_step() has them. A round is some steps, a save with
// steps beside it, as many steps again, a save alone, and the plain files. Everything is written to a folder beside the
// run's checkpoints (see ScratchFolder) that holds two of them at most, one of which is replaced: what retention
// removes counts to the save, as it does in a run that goes on for long.
//
// Throws AgreedError: kUsage where that folder cannot be written or has no room, kIo when a save fails, and when
// `stop_requested`, polled between steps, is true on any rank.
[[nodiscard]] CheckpointBenchResult bench_checkpoint(const BenchModel& model, int rounds, Communicator& communicator,
                                                     const std::function<bool()>& stop_requested);

}  // namespace lockstep
