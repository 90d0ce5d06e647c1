// A trained model, ready to be evaluated or to write.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <vector>

#include "data/dataset.h"
#include "data/text/tokenizer.h"
#include "trainer/checkpoint/reader.h"
#include "trainer/replica.h"
#include "trainer/tuned_model.h"

namespace lockstep {

struct LoadedModel {
  std::filesystem::path folder;       // of the trained weights; or the GGUF file that holds them
  std::filesystem::path text_folder;  // of tokenizer.json and what belongs to it; or the GGUF file
  Replica replica;
  Tokenizer tokenizer;
  // Stands before a text, as the tokenizer's post-processing says (Llama 3). None where config.json names another
  // token: a model trained here on such a tokenizer has seen end_of_text() between its documents and nothing else.
  std::optional<std::int32_t> beginning_of_text;
  // Each of these ends a text: the tokenizer's end_of_text() and config.json's eos_token_id.
  std::vector<std::int32_t> ends_of_text;
  // ChatTemplate::name() of the conversations that it was trained on, as its files say; empty: they do not.
  std::string template_name;
  std::string template_source;  // of a GGUF file: its chat template, in Jinja; empty: none
};

// The folder of the model that `path` names: a run's newest intact checkpoint (each damaged one on the way is given to
// `on_damaged`), a checkpoint, a Hugging Face folder, or a folder with adapters. Throws as load_model() does.
[[nodiscard]] std::filesystem::path find_model_folder(const std::filesystem::path& path,
                                                      const std::function<void(const DamagedCheckpoint&)>& on_damaged);

// Where a model is to be found, and what stands beside it.
struct ModelSource {
  std::filesystem::path folder;       // of the model, or its GGUF file; with adapters, of the model that they are for
  bool is_gguf = false;               // that is, `folder` is a file
  std::optional<TunedModel> tuned;    // trained weights of their own: adapters, or some layers
  std::filesystem::path text_folder;  // of tokenizer.json and what belongs to it: the tuned model's own first

  // Of the trained weights: what a message calls the model.
  [[nodiscard]] const std::filesystem::path& name() const { return tuned ? tuned->folder : folder; }
};
// `path` is a run, a checkpoint, a Hugging Face folder, a GGUF file, or a folder with adapters; `adapter`, empty or a
// run, a checkpoint or a folder with adapters, is laid over the model at `path`. Throws Error(kUsage) naming what is
// missing, Error(kCorrupt) for damaged files and for a run none of whose checkpoints is intact.
[[nodiscard]] ModelSource find_model(const std::filesystem::path& path, const std::filesystem::path& adapter,
                                     const std::function<void(const DamagedCheckpoint&)>& on_damaged);

// What is said of a model beside its weights. Throws as load_model().
struct ModelDescription {
  Architecture architecture;
  HfTextEnds text_ends;
  std::string template_name;
  std::string template_source;
};
[[nodiscard]] ModelDescription describe_model(const ModelSource& source);

// Weights are kept in the working dtype of `precision`, adapters beside them. Throws Error(kUsage) naming what is
// missing, Error(kCorrupt) for damaged files, Error(kUnsupported) for what is in a GGUF file and not known here.
[[nodiscard]] LoadedModel load_model(const ModelSource& source, Precision precision, Backend& backend);

// The first id that both tokenizers have, but with different bytes. Where there is none, tokens that one of them made
// mean the same to the other, even if their fingerprints differ: a GGUF file has names for ids that no token has, and
// does not keep how texts are normalised.
[[nodiscard]] std::optional<std::uint32_t> first_difference(const Tokenizer& a, const Tokenizer& b);

// Throws Error(kUsage) unless the dataset was packed with the model's tokenizer: by their fingerprints, or for a
// tokenizer out of a GGUF file by its tokens.
void check_tokenizer(const Dataset& dataset, const LoadedModel& model);

}  // namespace lockstep
