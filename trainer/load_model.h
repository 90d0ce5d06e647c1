// A trained model, ready to be evaluated or to write.
#pragma once

#include <filesystem>
#include <functional>

#include "data/text/tokenizer.h"
#include "trainer/checkpoint/reader.h"
#include "trainer/replica.h"

namespace lockstep {

struct LoadedModel {
  std::filesystem::path folder;  // of the weights
  Replica replica;
  Tokenizer tokenizer;
};

// `path` is a run (its newest intact checkpoint is taken, each damaged one on the way given to `on_damaged`), a
// checkpoint, or a Hugging Face folder (config.json, tokenizer.json, safetensors). Weights are kept in the working
// dtype of `precision`. Throws Error(kUsage) naming what is missing, Error(kCorrupt) for damaged files and for a run
// none of whose checkpoints is intact.
[[nodiscard]] LoadedModel load_model(const std::filesystem::path& path, Precision precision, Backend& backend,
                                     const std::function<void(const DamagedCheckpoint&)>& on_damaged);

}  // namespace lockstep
