// A model of tests/golden/model with its weights in our layout.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "base/file.h"
#include "trainer/formats/hf_weights.h"
#include "trainer/model/parameters.h"

namespace lockstep {

struct GoldenWeights {
  std::filesystem::path folder;
  Architecture architecture;
  ModelParameters parameters;
  std::vector<float> weights;
};
inline GoldenWeights golden(const std::string& name) {
  const std::filesystem::path folder = std::filesystem::path(LOCKSTEP_GOLDEN_MODELS) / name;
  const std::filesystem::path config = folder / "config.json";
  GoldenWeights model{folder, from_hf_config(read_file(config), config.string()), {}, {}};
  model.parameters = make_parameters(model.architecture);
  model.weights.resize(model.parameters.layout.total());
  load_hf_weights(folder, model.parameters.layout, model.weights);
  return model;
}

}  // namespace lockstep
