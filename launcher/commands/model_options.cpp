#include "launcher/commands/model_options.h"

#include <CLI/CLI.hpp>

#include "base/cores.h"
#include "launcher/command_line.h"

namespace lockstep {

Precision ModelOptions::precision() const {
  return precision_name == "bf16" ? Precision::kBf16 : precision_name == "fp16" ? Precision::kFp16 : Precision::kFp32;
}

DeviceConfig ModelOptions::device() const {
  return {.kind = device_name == "cuda"  ? DeviceWish::kCuda
                  : device_name == "cpu" ? DeviceWish::kCpu
                                         : DeviceWish::kAuto,
          .share = true};
}

int ModelOptions::threads_or_all() const { return threads > 0 ? threads : usable_cores(); }

void add_model_options(CLI::App& command, ModelOptions& options) {
  command
      .add_option("--model,MODEL", options.path,
                  "A run (its newest checkpoint), a checkpoint, a Hugging Face folder, or a GGUF file")
      ->required()
      ->type_name("PATH");
  command.add_option("--adapter", options.adapter, "Adapters to lay over it: of a run, a checkpoint, or peft's")
      ->type_name("DIR");
  command.add_option("--precision", options.precision_name, "Compute in fp32, bf16 or fp16")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}));
  command.add_option("--device", options.device_name, "Compute on the CPU or a GPU; auto: a GPU where there is one")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  command.add_option("--threads", options.threads, "Threads to compute on; 0: all cores")
      ->check(CLI::NonNegativeNumber);
}

void add_sampling_options(CLI::App& command, GenerateOptions& options) {
  command.add_option("--max-tokens", options.max_tokens, "Tokens to make at most")->check(above_zero());
  SamplingOptions& sampling = options.sampling;
  command.add_option("--temperature", sampling.temperature, "0: always the likeliest token; 1: as the model says")
      ->check(CLI::Range(0.0, 100.0));
  command.add_option("--top-k", sampling.top_k, "Draw among the K likeliest tokens; 0: among all")
      ->check(CLI::NonNegativeNumber);
  command.add_option("--top-p", sampling.top_p, "Draw among the likeliest tokens that make up probability P")
      ->check(CLI::Range(1e-6, 1.0));
  command.add_option("--seed", sampling.seed, "The same seed and options give the same text")
      ->transform(whole_number());
}

LoadedModel load_model(const ModelOptions& options, Backend& backend, Log* log) {
  const ModelSource source = find_model(options.path, options.adapter, [log](const DamagedCheckpoint& damaged) {
    if (log != nullptr) {
      log->warning("checkpoint {} is damaged and not used: {}", damaged.path.string(), damaged.reason);
    }
  });
  LoadedModel model = load_model(source, options.precision(), backend);
  if (log != nullptr && model.folder != options.path) {
    log->info("model: {}", model.folder.string());
  }
  return model;
}

}  // namespace lockstep
