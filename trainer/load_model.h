// A trained model, ready to be evaluated or to write.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <vector>

#include "data/text/tokenizer.h"
#include "trainer/checkpoint/reader.h"
#include "trainer/replica.h"

namespace lockstep {

struct LoadedModel {
  std::filesystem::path folder;  // of the weights
  Replica replica;
  Tokenizer tokenizer;
  // Stands before a text, as the tokenizer's post-processing says (Llama 3). None where config.json names another
  // token: a model trained here on such a tokenizer has seen end_of_text() between its documents and nothing else.
  std::optional<std::int32_t> beginning_of_text;
  // Each of these ends a text: the tokenizer's end_of_text() and config.json's eos_token_id.
  std::vector<std::int32_t> ends_of_text;
};

// The folder of the model that `path` names: a run's newest intact checkpoint (each damaged one on the way is given to
// `on_damaged`), a checkpoint, or a Hugging Face folder. Throws as load_model() does.
[[nodiscard]] std::filesystem::path find_model_folder(const std::filesystem::path& path,
                                                      const std::function<void(const DamagedCheckpoint&)>& on_damaged);

// `path` is a run (its newest intact checkpoint is taken, each damaged one on the way given to `on_damaged`), a
// checkpoint, or a Hugging Face folder (config.json, tokenizer.json, safetensors). Weights are kept in the working
// dtype of `precision`. Throws Error(kUsage) naming what is missing, Error(kCorrupt) for damaged files and for a run
// none of whose checkpoints is intact.
[[nodiscard]] LoadedModel load_model(const std::filesystem::path& path, Precision precision, Backend& backend,
                                     const std::function<void(const DamagedCheckpoint&)>& on_damaged);

}  // namespace lockstep
