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
  struct Special {
    std::int64_t id = -1;  // -1: there is none
    std::string text = {};
  };
  std::string json;           // tokenizer.json
  Special end_of_text;        // or of an answer, after conversations
  Special beginning_of_text;  // none: texts begin after what ends one
  std::string chat_template;  // Jinja; empty: none
  std::string template_name;
};

// This rank's part of the run's checkpoints, and the folder and the retention that `config` asks for.
[[nodiscard]] CheckpointOptions checkpoint_options(const Config& config, const TrainStep& train_step,
                                                   const Communicator& communicator, Backend& backend,
                                                   const SavedTokenizer& tokenizer);

// That part of the state as it is now, in the memory of `train_step`.
[[nodiscard]] CheckpointSource checkpoint_source(const TrainStep& train_step, const Communicator& communicator);

// Where a run is after `completed` steps with so many inputs, without what its evaluations said.
[[nodiscard]] RunPosition run_position(const Config& config, std::int64_t completed, std::uint64_t tokens);

// Of all ranks' files together, but for the headers and texts in them.
[[nodiscard]] std::uint64_t checkpoint_bytes(const Replica& replica);

}  // namespace lockstep
