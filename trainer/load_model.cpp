#include "trainer/load_model.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "trainer/formats/gguf_file.h"
#include "trainer/gguf_model.h"
#include "trainer/trained_text.h"

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

// Of tokenizer_config.json, if it says so.
std::string template_name_in(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "tokenizer_config.json";
  const auto json = std::filesystem::is_regular_file(path) ? nlohmann::json::parse(read_file(path), nullptr, false)
                                                           : nlohmann::json();
  const bool is_named = json.is_object() && json.contains(kTemplateNameKey) && json[kTemplateNameKey].is_string();
  return is_named ? json[kTemplateNameKey].get<std::string>() : std::string();
}

}  // namespace

std::filesystem::path find_model_folder(const std::filesystem::path& path,
                                        const std::function<void(const DamagedCheckpoint&)>& on_damaged) {
  require(std::filesystem::is_directory(path),
          "{}: no such folder; expected a run, a checkpoint, a Hugging Face folder or a GGUF file", path.string());
  for (const char* name : {"config.json", "adapter_config.json", kManifestName}) {
    if (std::filesystem::is_regular_file(path / name)) {
      return path;
    }
  }
  const std::filesystem::path checkpoints = path / "checkpoints";
  require(std::filesystem::is_directory(checkpoints),
          "{}: neither config.json (a model) nor checkpoints (a run) is in it", path.string());
  const auto latest = find_latest_checkpoint(checkpoints, on_damaged);
  require(latest.has_value(), "{}: no checkpoint was saved yet", path.string());
  return latest->path();
}

ModelSource find_model(const std::filesystem::path& path, const std::filesystem::path& adapter,
                       const std::function<void(const DamagedCheckpoint&)>& on_damaged) {
  ModelSource source;
  if (std::filesystem::is_regular_file(path)) {
    require(is_gguf_file(path), "{} is no GGUF file; expected one, or a run, a checkpoint or a Hugging Face folder",
            path.string());
    source.folder = path;
    source.is_gguf = true;
  } else {
    source.folder = find_model_folder(path, on_damaged);
    source.tuned = find_tuned_model(source.folder);
  }
  if (!adapter.empty()) {
    require(!source.tuned, "{} has trained weights beside those of {} already; adapters stand beside a whole model",
            source.folder.string(), source.tuned ? source.tuned->base.string() : "");
    const std::filesystem::path folder = find_model_folder(adapter, on_damaged);
    source.tuned = find_tuned_model(folder);
    require(source.tuned.has_value(), "{} holds a whole model; expected adapters (adapter_config.json)",
            folder.string());
  } else if (source.tuned) {
    source.folder = source.tuned->base;
    require(std::filesystem::is_regular_file(source.folder / "config.json"),
            "{} stands beside the model {}, which is not there; --model MODEL --adapter {} says where it is",
            source.tuned->folder.string(), source.folder.string(), source.tuned->folder.string());
  }
  require(source.is_gguf || std::filesystem::is_regular_file(source.folder / "config.json"),
          "{}: no config.json is in it", source.folder.string());
  const bool has_text = source.tuned && std::filesystem::is_regular_file(Tokenizer::file_of(source.tuned->folder));
  source.text_folder = has_text ? source.tuned->folder : source.folder;
  return source;
}

ModelDescription describe_model(const ModelSource& source) {
  ModelDescription description;
  if (source.is_gguf) {
    const GgufModel model(source.folder);
    description = {model.architecture(), model.text_ends(), model.template_name(), model.chat_template()};
  } else {
    const std::filesystem::path config = source.folder / "config.json";
    const std::string text = read_file(config);
    description = {from_hf_config(text, config.string()), text_ends_of_hf_config(text, config.string()), {}, {}};
  }
  if (std::filesystem::is_directory(source.text_folder)) {
    description.template_name = template_name_in(source.text_folder);
    description.template_source.clear();  // that of the folder counts
  }
  return description;
}

LoadedModel load_model(const ModelSource& source, Precision precision, Backend& backend) {
  const ModelDescription description = describe_model(source);
  TuneConfig tune = source.tuned ? source.tuned->tune : TuneConfig{};
  tune.quantize = Packing::kNone;  // saves memory in training; here each token would unpack all weights
  LoadedModel model{source.name(),
                    source.text_folder,
                    Replica(description.architecture, precision, backend, tune),
                    Tokenizer::load(source.text_folder),
                    {},
                    {},
                    description.template_name,
                    description.template_source};
  require(static_cast<std::int64_t>(model.tokenizer.vocab_size()) <= description.architecture.vocab,
          "{}: the tokenizer has {} tokens, the model {}", source.text_folder.string(), model.tokenizer.vocab_size(),
          description.architecture.vocab);
  set_text_ends(model, description.text_ends);
  if (source.tuned) {
    if (const auto end = trained_end(source.text_folder, model.tokenizer)) {
      model.ends_of_text.push_back(*end);
    }
    load_tuned(*source.tuned, source.folder, model.replica);
  } else {
    model.replica.fill([&](std::span<float> weights) { load_weights(source.folder, model.replica.layout(), weights); });
  }
  return model;
}

std::optional<std::uint32_t> first_difference(const Tokenizer& a, const Tokenizer& b) {
  for (std::uint32_t id = 0; id < std::min(a.vocab_size(), b.vocab_size()); ++id) {
    if (a.has_token(id) && b.has_token(id) && a.token_bytes(id) != b.token_bytes(id)) {
      return id;
    }
  }
  return {};
}

void check_tokenizer(const Dataset& dataset, const LoadedModel& model) {
  const DatasetTokenizer& packed = dataset.info().tokenizer;
  const bool is_same = packed.fingerprint == model.tokenizer.fingerprint() ||
                       (std::filesystem::is_regular_file(model.text_folder) &&
                        !first_difference(Tokenizer::load(dataset.tokenizer_path()), model.tokenizer));
  require(is_same, "{} was packed with the tokenizer {}, which is not the model's in {}", dataset.folder().string(),
          packed.name, model.text_folder.string());
}

}  // namespace lockstep
