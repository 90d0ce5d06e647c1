// The flags that commands which read a trained model share.
#pragma once

#include <string>

#include "base/log.h"
#include "trainer/generate.h"
#include "trainer/load_model.h"

namespace CLI {
class App;
}

namespace lockstep {

struct ModelOptions {
  std::string path;
  std::string adapter;
  std::string precision_name = "fp32";
  int threads = 0;
  std::string device_name = "auto";

  [[nodiscard]] Precision precision() const;
  [[nodiscard]] DeviceConfig device() const;
  [[nodiscard]] int threads_or_all() const;  // 0: the cores of this machine
};

void add_model_options(CLI::App& command, ModelOptions& options);

// How texts are made: --max-tokens, --temperature, --top-k, --top-p, --seed.
void add_sampling_options(CLI::App& command, GenerateOptions& options);

// Loads what `options` names. `log` (null on ranks for which another speaks) is told which of a run's checkpoints is
// taken, and which damaged ones were passed over. Throws what load_model(path) throws.
[[nodiscard]] LoadedModel load_model(const ModelOptions& options, Backend& backend, Log* log);

}  // namespace lockstep
