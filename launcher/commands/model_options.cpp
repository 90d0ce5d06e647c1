#include "launcher/commands/model_options.h"

#include <CLI/CLI.hpp>

#include "base/cores.h"

namespace lockstep {

Precision ModelOptions::precision() const { return precision_name == "bf16" ? Precision::kBf16 : Precision::kFp32; }

int ModelOptions::threads_or_all() const { return threads > 0 ? threads : usable_cores(); }

void add_model_options(CLI::App& command, ModelOptions& options) {
  command.add_option("--model", options.path, "A run (its newest checkpoint), a checkpoint, or a Hugging Face folder")
      ->required()
      ->type_name("DIR");
  command.add_option("--precision", options.precision_name, "Compute in fp32 or bf16")
      ->check(CLI::IsMember({"fp32", "bf16"}));
  command.add_option("--threads", options.threads, "Threads to compute on; 0: all cores")
      ->check(CLI::NonNegativeNumber);
}

LoadedModel load_model(const ModelOptions& options, Backend& backend, Log* log) {
  LoadedModel model = load_model(options.path, options.precision(), backend, [log](const DamagedCheckpoint& damaged) {
    if (log != nullptr) {
      log->warning("checkpoint {} is damaged and not used: {}", damaged.path.string(), damaged.reason);
    }
  });
  if (log != nullptr && model.folder != options.path) {
    log->info("model: {}", model.folder.string());
  }
  return model;
}

}  // namespace lockstep
