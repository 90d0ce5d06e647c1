// lockstep export: a trained model in the files of other programs.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/progress.h"
#include "launcher/command_line.h"
#include "launcher/commands/command.h"
#include "launcher/output.h"
#include "trainer/export_gguf.h"
#include "trainer/export_safetensors.h"
#include "trainer/load_model.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

struct Options {
  std::string model;
  std::string to;
  std::string type;
  std::string out;
  std::uint64_t shard_mib = 4768;  // 5 GB, as transformers cuts models
  bool overwrite = false;
};

struct Source {
  fs::path folder;
  Architecture architecture;
  ModelParameters parameters;
  std::vector<float> weights;
};

Source load(const Options& options, Log& log) {
  const fs::path folder = find_model_folder(options.model, [&](const DamagedCheckpoint& damaged) {
    log.warning("checkpoint {} is damaged and not used: {}", damaged.path.string(), damaged.reason);
  });
  const fs::path config = folder / "config.json";
  Source source{folder, from_hf_config(read_file(config), config.string()), {}, {}};
  source.parameters = make_parameters(source.architecture);
  source.weights.resize(source.parameters.layout.total());
  load_weights(folder, source.parameters.layout, source.weights);
  return source;
}

// Of tokenizer_config.json, or the file that newer versions keep it in.
std::string chat_template_of(const fs::path& folder) {
  if (fs::is_regular_file(folder / "chat_template.jinja")) {
    return read_file(folder / "chat_template.jinja");
  }
  if (!fs::is_regular_file(folder / "tokenizer_config.json")) {
    return {};
  }
  const auto json = nlohmann::json::parse(read_file(folder / "tokenizer_config.json"), nullptr, false);
  return json.is_object() && json.contains("chat_template") && json["chat_template"].is_string()
             ? json["chat_template"].get<std::string>()
             : std::string();
}

SafetensorsType parse_safetensors_type(const std::string& name) {
  require(name == "f32" || name == "f16" || name == "bf16", "--type is {}, expected f32, f16 or bf16 for safetensors",
          name);
  return name == "f16" ? SafetensorsType::kF16 : name == "bf16" ? SafetensorsType::kBF16 : SafetensorsType::kF32;
}

void check_place(const Options& options) {
  const fs::path out = options.out;
  if (options.to == "gguf") {
    require(!fs::is_directory(out), "--out {}: a folder is there; expected the name of a file", options.out);
    require(options.overwrite || !fs::exists(out), "--out {}: a file is there; --overwrite replaces it", options.out);
    require(out.parent_path().empty() || fs::is_directory(out.parent_path()), "--out {}: there is no folder {}",
            options.out, out.parent_path().string());
    return;
  }
  require(!fs::exists(out) || (fs::is_directory(out) && fs::is_empty(out)),
          "--out {}: it is there already; expected a folder to make, or an empty one", options.out);
}

int run_export(const Options& options, CommandContext& context) {
  const bool to_gguf = options.to == "gguf";
  const std::string type = !options.type.empty() ? options.type : to_gguf ? "q8_0" : "bf16";
  const GgufKind kind = to_gguf ? parse_gguf_kind(type) : GgufKind::kF32;
  const SafetensorsType safetensors_type = to_gguf ? SafetensorsType::kF32 : parse_safetensors_type(type);
  check_place(options);
  const Source source = load(options, context.log);
  Progress progress(context.log, {.what = "export", .unit = "tensor"});
  const auto on_progress = [&](std::size_t done, std::size_t total) {
    if (progress.due(done)) {
      const std::vector<std::string> fields = {fmt::format("of {}", total)};
      progress.update(done, fields);
    }
  };
  if (!to_gguf) {
    const SafetensorsSummary summary = export_safetensors({.model = source.folder,
                                                           .layout = source.parameters.layout,
                                                           .weights = source.weights,
                                                           .type = safetensors_type,
                                                           .shard_bytes = options.shard_mib << 20},
                                                          options.out, on_progress);
    print(fmt::format("{}: {} of weights in {}, {}, of {}\n", options.out, format_bytes(summary.bytes), type,
                      summary.files == 1 ? "one file" : fmt::format("{} files", summary.files),
                      source.folder.string()));
    return kExitDone;
  }
  const Tokenizer tokenizer = Tokenizer::load(source.folder / "tokenizer.json");
  const GgufSummary summary = export_gguf({.architecture = source.architecture,
                                           .layout = source.parameters.layout,
                                           .weights = source.weights,
                                           .tokenizer = tokenizer,
                                           .ends = text_ends_of_hf_config(read_file(source.folder / "config.json"),
                                                                          (source.folder / "config.json").string()),
                                           .name = fs::path(options.out).stem().string(),
                                           .chat_template = chat_template_of(source.folder)},
                                          kind, options.out, on_progress);
  for (const auto& [other, count] : summary.fallbacks) {
    context.log.info("export: {} tensors have rows that {} cannot take, and are {}", count, type, other);
  }
  print(fmt::format("{}: {} tensors, {}, of {}\n", options.out, summary.tensors, format_bytes(summary.size_bytes),
                    source.folder.string()));
  return kExitDone;
}

}  // namespace

void add_export(CLI::App& app, CommandContext& context) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("export", "Write a trained model as a GGUF file or a Hugging Face folder");
  command
      ->add_option("--model", options->model, "A run (its newest checkpoint), a checkpoint, or a Hugging Face folder")
      ->required()
      ->type_name("DIR");
  command->add_option("--to", options->to, "gguf: a file that llama.cpp runs; safetensors: a folder for transformers")
      ->check(CLI::IsMember({"gguf", "safetensors"}))
      ->required();
  command
      ->add_option("--type", options->type,
                   fmt::format("gguf: {} (default q8_0); safetensors: f32, f16, bf16 (default bf16)",
                               fmt::join(gguf_kind_names(), ", ")))
      ->type_name("TYPE");
  command->add_option("--out", options->out, "The file, or the folder")->required()->type_name("PATH");
  command->add_option("--shard-mib", options->shard_mib, "safetensors: weights in one file, at most")
      ->transform(whole_number())
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_flag("--overwrite", options->overwrite, "gguf: replace the file");
  command->footer(
      "q4_k_m and q6_k pack rows of a multiple of 256, the other quantised types of 32; rows of another length go "
      "into\n"
      "the next type that takes them, as in llama.cpp.\n"
      "Example: lockstep export --model runs/shakespeare --to gguf --type q8_0 --out shakespeare.gguf");
  command->callback(
      [options, &context] { context.run = [options, &context] { return run_export(*options, context); }; });
}

}  // namespace lockstep
