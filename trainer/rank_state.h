// What a rank has of a run in memory, when its group of ranks is over and the job goes on: enough to train on from, for
// this rank and for another that takes the place of a lost one.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "base/buffer.h"
#include "comm/communicator.h"
#include "trainer/resume.h"

namespace lockstep {

struct RankState {
  std::int64_t completed = 0;  // steps
  std::uint64_t tokens = 0;    // inputs of these steps
  RunProgress progress;
  std::string config_text;                // of the run, resolved
  std::string last_lines;                 // of metrics.jsonl: what belongs to the last step, each with its '\n'
  bool save_pending = false;              // a checkpoint that was begun may not be there
  std::optional<double> validation_loss;  // after the last step
  std::uint64_t elements = 0;             // of the flat parameters
  Buffer values;                          // on the host, f32: weights, then both moments of AdamW, `elements` each

  [[nodiscard]] std::span<float> weights() const { return part(0); }
  [[nodiscard]] std::span<float> exp_avg() const { return part(1); }
  [[nodiscard]] std::span<float> exp_avg_sq() const { return part(2); }
  void allocate(std::uint64_t count);

 private:
  [[nodiscard]] std::span<float> part(std::size_t i) const {
    return values.as<float>(3 * elements).subspan(i * elements, elements);
  }
};

// Collective. Gives every rank the state of the rank that is furthest, if any has one: afterwards `own` is the same on
// all. Ranks that have it already keep it. Returns the rank whose state it is; nothing when nobody has any.
std::optional<int> agree_on_state(std::optional<RankState>& own, Communicator& communicator);

}  // namespace lockstep
