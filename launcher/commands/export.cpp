// lockstep export: a trained model in the files of other programs. lockstep merge: one folder of two.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/cores.h"
#include "base/error.h"
#include "base/file.h"
#include "base/progress.h"
#include "data/chat/own_template.h"
#include "launcher/command_line.h"
#include "launcher/commands/command.h"
#include "launcher/output.h"
#include "trainer/adapter_config.h"
#include "trainer/device.h"
#include "trainer/export_gguf.h"
#include "trainer/export_safetensors.h"
#include "trainer/load_model.h"
#include "trainer/trained_text.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

struct Options {
  std::string model;
  std::string adapter;
  std::string to;
  std::string type;
  std::string out;
  std::uint64_t shard_mib = 4768;  // 5 GB, as transformers cuts models
  bool overwrite = false;
  bool needs_adapter = false;  // there must be something to merge
};

// What is written: weights in the layout of `parameters`.
struct Source {
  ModelSource model;
  std::string config;                        // of the whole model, even where adapters alone are written
  std::map<std::string, std::string> texts;  // files that stand in for those of the text folder
  Architecture architecture;
  ModelParameters parameters;
  std::vector<float> weights;
};

Source load(const Options& options, Log& log) {
  Source source;
  source.model = find_model(options.model, options.adapter, [&](const DamagedCheckpoint& damaged) {
    log.warning("checkpoint {} is damaged and not used: {}", damaged.path.string(), damaged.reason);
  });
  require(!source.model.is_gguf, "{} is an export already; expected a run, a checkpoint or a Hugging Face folder",
          source.model.folder.string());
  const fs::path config = source.model.folder / "config.json";
  source.config = read_file(config);
  source.architecture = from_hf_config(source.config, config.string());
  const std::optional<TunedModel>& tuned = source.model.tuned;
  const bool apart = options.to == "adapter";
  require(!options.needs_adapter || tuned, "{} has nothing that stands beside a model; --adapter DIR names it",
          source.model.name().string());
  require(!apart || (tuned && tuned->tune.method == TuneMethod::kLora),
          "{} has no adapters; expected a run with tune.method lora, or adapters of peft",
          source.model.name().string());
  source.parameters = make_parameters(source.architecture, apart ? tuned->tune : TuneConfig{});
  source.weights.resize(source.parameters.layout.total());
  if (apart) {
    load_trained(*tuned, source.parameters.layout, source.weights);
  } else if (tuned) {
    const auto backend = make_cpu_backend(usable_cores());
    load_merged(*tuned, source.model.folder, source.architecture, *backend, source.weights);
  } else {
    load_weights(source.model.folder, source.parameters.layout, source.weights);
  }
  return source;
}

// A tuned model's own tokenizer stands beside its base, which knows nothing of the answers that were learnt.
void take_texts(Source& source, const Tokenizer& tokenizer) {
  const ModelSource& model = source.model;
  if (!model.tuned || model.text_folder == model.folder) {
    return;
  }
  const std::optional<std::int32_t> end = trained_end(model.text_folder, tokenizer);
  if (end) {
    source.config = with_end(source.config, *end);
  }
  const fs::path generation = model.folder / "generation_config.json";
  if (fs::is_regular_file(generation)) {
    const std::string text = read_file(generation);
    source.texts["generation_config.json"] = end ? with_end(text, *end) : text;
  }
  const char* const tokenizer_config = "tokenizer_config.json";
  if (fs::is_regular_file(model.folder / tokenizer_config) &&
      fs::is_regular_file(model.text_folder / tokenizer_config)) {
    source.texts[tokenizer_config] = with_tokens_of_base(read_file(model.text_folder / tokenizer_config),
                                                         read_file(model.folder / tokenizer_config));
  }
}

SafetensorsType parse_safetensors_type(const std::string& name) {
  require(name == "f32" || name == "f16" || name == "bf16", "--type is {}, expected f32, f16 or bf16 for safetensors",
          name);
  return name == "f16" ? SafetensorsType::kF16 : name == "bf16" ? SafetensorsType::kBF16 : SafetensorsType::kF32;
}

void check_place(const Options& options) {
  const fs::path out = options.out;
  if (options.to == "gguf") {
    static_cast<void>(place_of_file("--out", out));
    require(options.overwrite || !fs::exists(out), "--out {}: a file is there; --overwrite replaces it", options.out);
    require(out.parent_path().empty() || fs::is_directory(out.parent_path()), "--out {}: there is no folder {}",
            options.out, out.parent_path().string());
    return;
  }
  require(!fs::exists(out) || (fs::is_directory(out) && fs::is_empty(out)),
          "--out {}: it is there already; expected a folder to make, or an empty one", options.out);
}

// What it was made of, for people.
std::string described(const Source& source) {
  const ModelSource& model = source.model;
  return model.tuned ? fmt::format("{} over {}", model.tuned->folder.string(), model.folder.string())
                     : model.folder.string();
}

int run_export(const Options& options, CommandContext& context) {
  const bool to_gguf = options.to == "gguf";
  const std::string type = !options.type.empty() ? options.type : to_gguf ? "q8_0" : "bf16";
  const GgufKind kind = to_gguf ? parse_gguf_kind(type) : GgufKind::kF32;
  const SafetensorsType safetensors_type = to_gguf ? SafetensorsType::kF32 : parse_safetensors_type(type);
  check_place(options);
  Source source = load(options, context.log);
  if (options.to != "adapter") {
    take_texts(source, Tokenizer::load(source.model.text_folder));
  }
  Progress progress(context.log, {.what = "export", .unit = "tensor"});
  const auto on_progress = [&](std::size_t done, std::size_t total) {
    if (progress.due(done)) {
      const std::vector<std::string> fields = {fmt::format("of {}", total)};
      progress.update(done, fields);
    }
  };
  if (!to_gguf) {
    SafetensorsExport files{.text_folder = source.model.text_folder,
                            .texts = source.texts,
                            .config = source.config,
                            .layout = source.parameters.layout,
                            .weights = source.weights,
                            .type = safetensors_type,
                            .shard_bytes = options.shard_mib << 20};
    if (options.to == "adapter") {
      files.config_name = "adapter_config.json";
      files.config = to_adapter_config(source.model.tuned->tune, source.architecture, source.model.folder.string());
      files.stem = "adapter_model";
      files.shard_bytes = std::numeric_limits<std::uint64_t>::max();  // peft reads one file
      if (!source.model.tuned->base_fingerprint.empty()) {
        files.metadata[kFingerprintKey] = source.model.tuned->base_fingerprint;
      }
      if (trains_shared_table(source.architecture, source.model.tuned->tune)) {
        const ModelParameters& parameters = source.parameters;
        const std::size_t table = parameters.places[static_cast<std::size_t>(parameters.token_table)].index;
        files.copy = kPeftHead;
        files.copied = parameters.layout.specs()[table].exports.front().hf_name;
      }
    }
    const SafetensorsSummary summary = export_safetensors(files, options.out, on_progress);
    print(fmt::format("{}: {} of weights in {}, {}, of {}\n", options.out, format_bytes(summary.bytes), type,
                      summary.files == 1 ? "one file" : fmt::format("{} files", summary.files), described(source)));
    return kExitDone;
  }
  const Tokenizer tokenizer = Tokenizer::load(source.model.text_folder);
  const GgufSummary summary =
      export_gguf({.architecture = source.architecture,
                   .layout = source.parameters.layout,
                   .weights = source.weights,
                   .tokenizer = tokenizer,
                   .ends = text_ends_of_hf_config(source.config, (source.model.folder / "config.json").string()),
                   .name = fs::path(options.out).stem().string(),
                   .chat_template = OwnTemplate::source_in(source.model.text_folder),
                   .template_name = describe_model(source.model).template_name},
                  kind, place_of_file("--out", options.out), on_progress);
  for (const auto& [other, count] : summary.fallbacks) {
    context.log.info("export: {} tensors have rows that {} cannot take, and are {}", count, type, other);
  }
  print(fmt::format("{}: {} tensors, {}, of {}\n", options.out, summary.tensors, format_bytes(summary.size_bytes),
                    described(source)));
  return kExitDone;
}

void add_places(CLI::App& command, Options& options) {
  command.add_option("--out", options.out, "The file, or the folder")->required()->type_name("PATH");
  command.add_option("--shard-mib", options.shard_mib, "safetensors: weights in one file, at most")
      ->transform(whole_number())
      ->check(above_zero())
      ->capture_default_str();
}

}  // namespace

void add_export(CLI::App& app, CommandContext& context) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("export", "Write a trained model as a GGUF file or a Hugging Face folder");
  command
      ->add_option("--model", options->model, "A run (its newest checkpoint), a checkpoint, or a Hugging Face folder")
      ->required()
      ->type_name("DIR");
  command
      ->add_option(
          "--adapter", options->adapter,
          "Adapters that become part of it: of a run, a checkpoint, or peft's; a run that trained some has them")
      ->type_name("DIR");
  command
      ->add_option("--to", options->to,
                   "gguf: a file that llama.cpp runs; safetensors: a folder for transformers; adapter: the adapters "
                   "alone, for peft")
      ->check(CLI::IsMember({"gguf", "safetensors", "adapter"}))
      ->required();
  command
      ->add_option("--type", options->type,
                   fmt::format("gguf: {} (default q8_0); safetensors, adapter: f32, f16, bf16 (default bf16)",
                               fmt::join(gguf_kind_names(), ", ")))
      ->type_name("TYPE");
  add_places(*command, *options);
  command->add_flag("--overwrite", options->overwrite, "gguf: replace the file");
  command->footer(
      "q4_k_m and q6_k pack rows of a multiple of 256, the other quantised types of 32; rows of another length go "
      "into\n"
      "the next type that takes them, as in llama.cpp.\n"
      "Example: lockstep export --model runs/shakespeare --to gguf --type q8_0 --out shakespeare.gguf");
  command->callback(
      [options, &context] { context.run = [options, &context] { return run_export(*options, context); }; });
}

void add_merge(CLI::App& app, CommandContext& context) {
  const auto options = std::make_shared<Options>();
  options->to = "safetensors";
  options->type = "bf16";
  options->needs_adapter = true;
  CLI::App* command =
      app.add_subcommand("merge", "Make a model and the adapters trained on it one Hugging Face folder");
  command->add_option("--model", options->model, "The model: a run (its newest checkpoint), a checkpoint, or a folder")
      ->required()
      ->type_name("DIR");
  command
      ->add_option("--adapter", options->adapter,
                   "The adapters: a run (its newest checkpoint), a checkpoint, or peft's; missing: --model has them, "
                   "and says what they stand beside")
      ->type_name("DIR");
  command->add_option("--type", options->type, "Of the weights")
      ->check(CLI::IsMember({"f32", "f16", "bf16"}))
      ->capture_default_str();
  add_places(*command, *options);
  command->footer(
      "Products are added in f32. Adapters that were trained here on another model are refused, by its fingerprint.\n"
      "Example: lockstep merge --model models/llama --adapter runs/lora --out models/llama-tuned");
  command->callback(
      [options, &context] { context.run = [options, &context] { return run_export(*options, context); }; });
}

}  // namespace lockstep
