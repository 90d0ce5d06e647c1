// What a checkpoint of a training run holds: between TrainStep, which has the state, and CheckpointWriter, which writes
// it.
#pragma once

#include <cstdint>
#include <string>

#include "comm/communicator.h"
#include "trainer/checkpoint/manifest.h"
#include "trainer/checkpoint/writer.h"
#include "trainer/config.h"
#include "trainer/replica.h"
#include "trainer/train_step.h"

namespace lockstep {

// The tokenizer that stands beside the model.
struct SavedTokenizer {
  std::string json;                  // tokenizer.json
  std::string end_of_text;           // the token's text, empty when the tokenizer has none
  std::int64_t end_of_text_id = -1;  // -1: none
};

// This rank's part of the run's checkpoints, and the folder and the retention that `config` asks for.
[[nodiscard]] CheckpointOptions checkpoint_options(const Config& config, const TrainStep& train_step,
                                                   const Communicator& communicator, const SavedTokenizer& tokenizer);

// That part of the state as it is now, in the memory of `train_step`.
[[nodiscard]] CheckpointSource checkpoint_source(const TrainStep& train_step, const Communicator& communicator);

// Where a run is after `completed` steps, without what its evaluations said.
[[nodiscard]] RunPosition run_position(const Config& config, const TrainStep& train_step, std::int64_t completed);

// Of all ranks' files together, but for the headers and texts in them.
[[nodiscard]] std::uint64_t checkpoint_bytes(const Replica& replica);

}  // namespace lockstep
