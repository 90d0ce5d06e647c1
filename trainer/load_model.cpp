#include "trainer/load_model.h"

#include "base/error.h"
#include "base/file.h"

namespace lockstep {
namespace {

void set_text_ends(LoadedModel& model, const HfTextEnds& config) {
  if (const auto beginning = model.tokenizer.beginning_of_text()) {
    const auto id = static_cast<std::int32_t>(*beginning);
    if (config.beginning.value_or(id) == id) {
      model.beginning_of_text = id;
    }
  }
  model.ends_of_text = config.ends;
  if (const auto end = model.tokenizer.end_of_text()) {
    model.ends_of_text.push_back(static_cast<std::int32_t>(*end));
  }
}

}  // namespace

std::filesystem::path find_model_folder(const std::filesystem::path& path,
                                        const std::function<void(const DamagedCheckpoint&)>& on_damaged) {
  require(std::filesystem::is_directory(path),
          "{}: no such folder; expected a run, a checkpoint or a Hugging Face folder", path.string());
  if (std::filesystem::is_regular_file(path / "config.json")) {
    return path;
  }
  const std::filesystem::path checkpoints = path / "checkpoints";
  require(std::filesystem::is_directory(checkpoints),
          "{}: neither config.json (a model) nor checkpoints (a run) is in it", path.string());
  const auto latest = find_latest_checkpoint(checkpoints, on_damaged);
  require(latest.has_value(), "{}: no checkpoint was saved yet", path.string());
  return latest->path();
}

LoadedModel load_model(const std::filesystem::path& path, Precision precision, Backend& backend,
                       const std::function<void(const DamagedCheckpoint&)>& on_damaged) {
  const std::filesystem::path folder = find_model_folder(path, on_damaged);
  const std::filesystem::path config = folder / "config.json";
  const std::string config_text = read_file(config);
  const Architecture architecture = from_hf_config(config_text, config.string());
  LoadedModel model{
      folder, Replica(architecture, precision, backend), Tokenizer::load(folder / "tokenizer.json"), {}, {}};
  require(static_cast<std::int64_t>(model.tokenizer.vocab_size()) <= architecture.vocab,
          "{}: the tokenizer has {} tokens, the model {}", folder.string(), model.tokenizer.vocab_size(),
          architecture.vocab);
  set_text_ends(model, text_ends_of_hf_config(config_text, config.string()));
  model.replica.fill([&](std::span<float> weights) { load_weights(folder, model.replica.layout(), weights); });
  return model;
}

}  // namespace lockstep
