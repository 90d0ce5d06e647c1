// The flags that commands which read a trained model share.
#pragma once

#include <string>

#include "trainer/config.h"

namespace CLI {
class App;
}

namespace lockstep {

struct ModelOptions {
  std::string path;
  std::string precision_name = "fp32";
  int threads = 0;

  [[nodiscard]] Precision precision() const;
  [[nodiscard]] int threads_or_all() const;  // 0: the cores of this machine
};

void add_model_options(CLI::App& command, ModelOptions& options);

}  // namespace lockstep
