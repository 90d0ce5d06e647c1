// lockstep inspect: what a dataset, a checkpoint, a run, or a safetensors or GGUF file holds.
#include "trainer/checkpoint/inspect.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <array>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/progress.h"
#include "data/dataset.h"
#include "launcher/commands/command.h"
#include "launcher/output.h"
#include "trainer/checkpoint/retention.h"
#include "trainer/formats/gguf_file.h"
#include "trainer/formats/hf_weights.h"
#include "trainer/formats/safetensors.h"
#include "trainer/tuned_model.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kDatasetName = "dataset.json";

struct InspectOptions {
  std::string path;
  bool json = false;
  bool verify = false;
};

// What was found, once for programs and once for people.
struct Findings {
  Json json;
  std::string text;
  bool intact = true;

  template <typename... Args>
  void line(const char* label, fmt::format_string<Args...> format, Args&&... args) {
    text += fmt::format("{:<12} {}\n", label, fmt::format(format, std::forward<Args>(args)...));
  }
};

Findings inspect_dataset(const fs::path& path, bool verify) {
  const Dataset dataset = Dataset::open(path);
  if (verify) {
    dataset.verify();
  }
  const DatasetInfo& info = dataset.info();
  Findings found;
  found.line("dataset", "{}", path.string());
  found.line("kind", "{}", name_of(info.kind));
  found.line("tokenizer", "{}, {} tokens, fingerprint {}", info.tokenizer.name, info.tokenizer.vocabulary_size,
             info.tokenizer.fingerprint);
  found.line("tokens", "{} ({})", info.tokens, name_of(info.token_dtype()));
  found.line("documents", "{}", info.documents);
  Json files = Json::array();
  for (const DatasetFile& file : info.files) {
    found.line("file", "{}  {} tokens, {} documents, {}", file.name, file.tokens, file.documents,
               format_bytes(file.size_bytes));
    files.push_back({{"name", file.name},
                     {"tokens", file.tokens},
                     {"documents", file.documents},
                     {"bytes", file.size_bytes},
                     {"xxh3_128", file.xxh3_128}});
  }
  if (verify) {
    found.line("verified", "every file is what dataset.json says");
  }
  found.json = {{"what", "dataset"},
                {"path", path.string()},
                {"kind", name_of(info.kind)},
                {"tokenizer",
                 {{"name", info.tokenizer.name},
                  {"vocabulary_size", info.tokenizer.vocabulary_size},
                  {"end_of_text", info.tokenizer.end_of_text},
                  {"fingerprint", info.tokenizer.fingerprint}}},
                {"tokens", info.tokens},
                {"documents", info.documents},
                {"dtype", name_of(info.token_dtype())},
                {"files", files},
                {"verified", verify}};
  return found;
}

// What weights that stand beside a model's say of it.
void tell_tuned(const TunedModel& tuned, Findings& found) {
  const TuneConfig& tune = tuned.tune;
  found.line("trained on", "{}{}", tuned.base.string(),
             tuned.base_fingerprint.empty() ? "" : fmt::format(", fingerprint {}", tuned.base_fingerprint));
  found.json["base"] = tuned.base.string();
  found.json["base_fingerprint"] = tuned.base_fingerprint;
  found.json["method"] = name_of(tune.method);
  if (tune.method == TuneMethod::kLora) {
    found.line("adapters", "rank {}, scale {}{}, of {}{}", tune.rank, tune.scale(), tune.dora ? ", DoRA" : "",
               tune.targets, tune.also_train.empty() ? "" : fmt::format("; whole: {}", tune.also_train));
    found.json["rank"] = tune.rank;
    found.json["scale"] = tune.scale();
    found.json["dora"] = tune.dora;
    found.json["targets"] = tune.targets;
  }
}

Findings inspect_checkpoint(const fs::path& path, bool verify) {
  const CheckpointDescription description =
      describe_checkpoint(path, verify ? InspectDepth::kContents : InspectDepth::kSizes);
  const Manifest& manifest = description.manifest;
  Findings found;
  found.intact = description.intact;
  found.line("checkpoint", "{}", path.string());
  found.line("step", "{}", manifest.position.step);
  found.line("digest", "{}", manifest.digest.hex());
  found.line("parameters", "{} in {} tensors", manifest.layout.parameters(), manifest.layout.size());
  found.line("weights", "{}", name_of(manifest.model_dtype));
  found.line("consumed", "{} samples, {} tokens", manifest.position.samples, manifest.position.tokens);
  found.line("saved by", "{} rank{}, seed {}", manifest.world, manifest.world == 1 ? "" : "s", manifest.position.seed);
  found.json = {{"what", "checkpoint"},
                {"path", path.string()},
                {"step", manifest.position.step},
                {"digest", manifest.digest.hex()},
                {"parameters", manifest.layout.parameters()},
                {"tensors", manifest.layout.size()},
                {"dtype", name_of(manifest.model_dtype)},
                {"samples", manifest.position.samples},
                {"tokens", manifest.position.tokens},
                {"world", manifest.world},
                {"seed", manifest.position.seed}};
  if (const auto tuned = find_tuned_model(path)) {
    tell_tuned(*tuned, found);
  }
  if (manifest.position.validation_loss) {
    found.line("valid loss", "{:.4f}", *manifest.position.validation_loss);
    found.json["valid_loss"] = *manifest.position.validation_loss;
  }
  Json files = Json::array();
  for (const auto& [file, problem] : description.files) {
    found.line("file", "{}  {}{}", file.name, format_bytes(file.bytes), problem.empty() ? "" : "  DAMAGED: " + problem);
    files.push_back({{"name", file.name}, {"bytes", file.bytes}, {"xxh3_128", file.hash.hex()}, {"problem", problem}});
  }
  found.json["files"] = files;
  found.json["verified"] = description.verified;
  found.json["intact"] = description.intact;
  found.json["config"] = manifest.position.config_text;
  if (description.verified && description.intact) {
    found.line("verified", "every file and the digest are what saving wrote");
  }
  return found;
}

Findings inspect_safetensors(const fs::path& path) {
  const SafetensorsFile file(path);
  Findings found;
  std::uint64_t parameters = 0;
  Json tensors = Json::array();
  std::string lines;
  for (const SafetensorsTensor& tensor : file.header().tensors) {
    parameters += tensor.count();
    lines += fmt::format("  {:<5} {:<16} {}\n", name_of(tensor.type), shape_text(tensor.shape), tensor.name);
    tensors.push_back({{"name", tensor.name}, {"dtype", name_of(tensor.type)}, {"shape", tensor.shape}});
  }
  found.line("safetensors", "{}", path.string());
  found.line("tensors", "{}, {} values, {}", tensors.size(), parameters, format_bytes(fs::file_size(path)));
  for (const auto& [key, value] : file.header().metadata) {
    found.line("metadata", "{}: {}", key, value);
  }
  found.text += lines;
  found.json = {{"what", "safetensors"},
                {"path", path.string()},
                {"values", parameters},
                {"metadata", file.header().metadata},
                {"tensors", tensors}};
  return found;
}

// What is said of a GGUF file's model: keys behind the architecture's name, in words and for programs.
constexpr std::array<std::pair<const char*, const char*>, 14> kGgufSizes = {{
    {"block_count", "blocks"},
    {"embedding_length", "width"},
    {"feed_forward_length", "feed-forward"},
    {"attention.head_count", "heads"},
    {"attention.head_count_kv", "heads of keys and values"},
    {"attention.key_length", "of a head"},
    {"context_length", "context"},
    {"vocab_size", "vocabulary"},
    {"attention.layer_norm_epsilon", "epsilon"},
    {"attention.layer_norm_rms_epsilon", "epsilon"},
    {"rope.freq_base", "rotary base"},
    {"rope.scaling.type", "rotary scaling"},
    {"rope.scaling.factor", "rotary factor"},
    {"expert_count", "experts"},
}};

// A number or a text; of an array, how long it is.
Json json_of(const GgufValue& value) {
  return std::visit(
      [](const auto& held) -> Json {
        if constexpr (std::is_same_v<std::decay_t<decltype(held)>, GgufReader::Array>) {
          return {{"array_of", held.count}};
        } else {
          return held;
        }
      },
      value);
}

void tell_gguf_tensors(const GgufFile& file, Findings& found) {
  struct Sum {
    std::uint64_t tensors = 0, values = 0, bytes = 0;
  };
  std::map<std::string_view, Sum> by_type;
  Sum all;
  Json tensors = Json::array();
  std::string lines;
  for (const GgufFileTensor& tensor : file.tensors()) {
    for (Sum* const sum : {&all, &by_type[tensor.type.name]}) {
      *sum = {sum->tensors + 1, sum->values + tensor.count(), sum->bytes + tensor.bytes};
    }
    lines += fmt::format("  {:<5} {:<16} {}\n", tensor.type.name, shape_text(tensor.shape), tensor.name);
    tensors.push_back({{"name", tensor.name}, {"type", tensor.type.name}, {"shape", tensor.shape}});
  }
  found.line("tensors", "{}, {} values, {}", all.tensors, all.values, format_bytes(fs::file_size(file.path())));
  found.json["values"] = all.values;
  for (const auto& [type, sum] : by_type) {
    found.line("type", "{:<5} {} in {} tensors, {:.2f} bits a value", type, format_bytes(sum.bytes), sum.tensors,
               8.0 * static_cast<double>(sum.bytes) / static_cast<double>(sum.values));
    found.json["types"][std::string(type)] = {{"tensors", sum.tensors}, {"values", sum.values}, {"bytes", sum.bytes}};
  }
  found.text += lines;
  found.json["tensors"] = tensors;
}

Findings inspect_gguf(const fs::path& path) {
  const GgufFile file(path);
  Findings found;
  const std::string architecture = file.text("general.architecture").value_or("");
  found.json = {{"what", "gguf"}, {"path", path.string()}, {"version", file.version()}, {"architecture", architecture}};
  found.line("gguf", "{}", path.string());
  found.line("architecture", "{}", architecture.empty() ? "not said" : architecture);
  Json sizes = Json::object();
  for (const auto& [key, words] : kGgufSizes) {
    const auto value = file.metadata().find(architecture + "." + key);
    if (value != file.metadata().end()) {
      sizes[key] = json_of(value->second);
      const auto* const real = std::get_if<double>(&value->second);  // mostly of f32
      found.line("", "{} {}", words,
                 real != nullptr ? fmt::format("{:.7g}", *real)
                                 : sizes[key].dump(-1, ' ', false, Json::error_handler_t::replace));
    }
  }
  found.json["sizes"] = sizes;
  const auto tokens = file.array("tokenizer.ggml.tokens");
  const std::string kind = file.text("tokenizer.ggml.model").value_or("none");
  const std::string pre = file.text("tokenizer.ggml.pre").value_or("");
  found.line("tokenizer", "{}{}, {} tokens", kind, pre.empty() ? "" : fmt::format(" ({})", pre),
             tokens ? tokens->count : 0);
  found.json["tokenizer"] = {{"model", kind}, {"pre", pre}, {"tokens", tokens ? tokens->count : 0}};
  const bool has_template = file.metadata().contains("tokenizer.chat_template");
  found.line("template", "{}", has_template ? "there is one for chats" : "none");
  found.json["chat_template"] = has_template;
  tell_gguf_tensors(file, found);
  return found;
}

// A run's folder (or its folder of checkpoints): what it could be resumed from.
Findings inspect_run(const fs::path& path, const fs::path& checkpoints, bool verify) {
  Findings found;
  found.line("run", "{}", path.string());
  Json list = Json::array();
  for (const CheckpointFolder& folder : list_checkpoints(checkpoints)) {
    try {
      const Findings checkpoint = inspect_checkpoint(folder.path, verify);
      found.intact = found.intact && checkpoint.intact;
      found.line("checkpoint", "{}  digest {}{}", folder.path.filename().string(),
                 checkpoint.json["digest"].get<std::string>(), checkpoint.intact ? "" : "  DAMAGED");
      list.push_back(checkpoint.json);
    } catch (const Error& error) {
      found.intact = false;
      found.line("checkpoint", "{}  DAMAGED: {}", folder.path.filename().string(), error.what());
      list.push_back({{"path", folder.path.string()}, {"intact", false}, {"problem", error.what()}});
    }
  }
  if (list.empty()) {
    found.line("checkpoint", "none yet");
  }
  found.json = {{"what", "run"}, {"path", path.string()}, {"checkpoints", list}};
  return found;
}

// A Hugging Face folder: all files of its weights.
Findings inspect_model(const fs::path& path, const std::vector<fs::path>& files) {
  Findings found;
  Json list = Json::array();
  for (const fs::path& file : files) {
    const Findings one = inspect_safetensors(file);
    found.text += (found.text.empty() ? "" : "\n") + one.text;
    list.push_back(one.json);
  }
  found.json = {{"what", "model"}, {"path", path.string()}, {"files", list}};
  return found;
}

// Adapters without a checkpoint's manifest: peft's, or exported ones.
Findings inspect_adapters(const TunedModel& tuned) {
  Findings found;
  found.line("adapters", "{}", tuned.folder.string());
  const Findings weights = inspect_safetensors(tuned.weights);
  found.json = {{"what", "adapters"}, {"path", tuned.folder.string()}, {"files", Json::array({weights.json})}};
  tell_tuned(tuned, found);
  found.text += "\n" + weights.text;
  return found;
}

// The datasets of a folder that pack wrote, by the names of their splits; empty for another folder.
std::map<std::string, fs::path> splits_of(const fs::path& path) {
  std::map<std::string, fs::path> splits;
  for (const char* split : {"train", "valid", "test"}) {
    if (fs::exists(path / split / kDatasetName)) {
      splits.emplace(split, path / split);
    }
  }
  return splits;
}

Findings inspect_splits(const fs::path& path, const std::map<std::string, fs::path>& folders, bool verify) {
  Findings found;
  Json splits = Json::object();
  for (const auto& [split, folder] : folders) {
    const Findings dataset = inspect_dataset(folder, verify);
    found.text += (found.text.empty() ? "" : "\n") + dataset.text;
    splits[split] = dataset.json;
  }
  found.json = {{"what", "splits"}, {"path", path.string()}, {"splits", splits}};
  return found;
}

Findings inspect_file(const fs::path& path) {
  constexpr std::string_view kHdf5Signature = "\x89HDF\r\n\x1a\n";
  std::string head(kHdf5Signature.size(), '\0');
  head.resize(File::open_to_read(path).read_some(0, std::as_writable_bytes(std::span(head))));
  require(head != kHdf5Signature, "{} is an HDF5 file; to inspect a dataset, give its folder", path.string());
  return is_gguf_file(path) ? inspect_gguf(path) : inspect_safetensors(path);
}

Findings inspect_path(const InspectOptions& options) {
  const fs::path path = options.path;
  require(fs::exists(path), "{} does not exist", path.string());
  if (!fs::is_directory(path)) {
    return inspect_file(path);
  }
  if (fs::exists(path / kDatasetName)) {
    return inspect_dataset(path, options.verify);
  }
  if (fs::exists(path / kManifestName)) {
    return inspect_checkpoint(path, options.verify);
  }
  if (fs::is_directory(path / "checkpoints")) {
    return inspect_run(path, path / "checkpoints", options.verify);
  }
  if (!list_checkpoints(path).empty()) {
    return inspect_run(path, path, options.verify);
  }
  if (const auto splits = splits_of(path); !splits.empty()) {
    return inspect_splits(path, splits, options.verify);
  }
  if (const auto files = hf_weight_files(path); !files.empty()) {
    return inspect_model(path, files);
  }
  if (const auto tuned = find_tuned_model(path)) {
    return inspect_adapters(*tuned);
  }
  fail(ErrorCode::kUsage,
       "{} is no dataset (dataset.json), checkpoint (manifest.json), run (checkpoints/) or model (model.safetensors)",
       path.string());
}

// What the file system refuses to show is an error of the path that was given.
Findings inspect_readable(const InspectOptions& options) {
  try {
    return inspect_path(options);
  } catch (const fs::filesystem_error& error) {
    fail(ErrorCode::kUsage, "{}: {}", error.path1().string(), error.code().message());
  }
}

}  // namespace

void add_inspect(CLI::App& app, CommandContext& context) {
  auto options = std::make_shared<InspectOptions>();
  CLI::App* command =
      app.add_subcommand("inspect", "Say what a dataset, checkpoint, run, safetensors or GGUF file holds");
  command->add_option("PATH", options->path, "A dataset, checkpoint or run folder, or a safetensors or GGUF file")
      ->required();
  command->add_flag("--json", options->json, "Print JSON");
  command->add_flag("--verify", options->verify, "Read every file and compare it with its checksum");
  command->callback([options, &context] {
    context.run = [options] {
      const Findings found = inspect_readable(*options);
      // Paths may be any bytes: replaced rather than refused.
      print(options->json ? found.json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n" : found.text);
      return found.intact ? kExitDone : kExitUsage;
    };
  });
}

}  // namespace lockstep
