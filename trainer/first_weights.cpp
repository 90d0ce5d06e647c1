#include "trainer/first_weights.h"

#include <filesystem>

#include "base/error.h"
#include "trainer/base_model.h"
#include "trainer/load_model.h"
#include "trainer/model/parameters.h"

namespace lockstep {

std::string write_first_weights(const Config& config, TrainStep& train_step, Backend& backend,
                                std::span<float> weights) {
  Replica& replica = train_step.replica();
  if (config.tune.method == TuneMethod::kFull && !config.model.from.empty()) {
    load_weights(config.model.from, train_step.layout(), weights);
    return "";
  }
  initialize(replica.model().architecture(), replica.model().parameters(), config.run.seed, backend.pool(), weights);
  if (config.tune.method == TuneMethod::kFull) {
    return "";
  }
  std::string fingerprint = load_base(config.model.from, replica, weights).hex();
  Tape tape(backend, train_step.arena(), nullptr);
  replica.model().initialize_magnitudes(tape, replica.weights(), weights);
  return fingerprint;
}

void load_base_again(const Config& config, Replica& replica, const std::string& fingerprint) {
  require(std::filesystem::is_directory(config.model.from),
          "{} (model.from) is not there; a tuned run needs the model that it stands on", config.model.from);
  const std::string found = load_base(config.model.from, replica, {}).hex();
  require(found == fingerprint,
          "{} (model.from) is not the model that this run was tuned on: its fingerprint is {}, expected {}",
          config.model.from, found, fingerprint);
}

void load_reference(const Config& config, TrainStep& train_step, bool goes_on, std::string& fingerprint) {
  ReferenceModel* const reference = train_step.reference();
  if (reference == nullptr || !reference->is_copy()) {
    return;
  }
  const std::string found = reference->load(config.model.from).hex();
  require(!goes_on || found == fingerprint,
          "{} (model.from) is not the model that this run began with: its fingerprint is {}, expected {}",
          config.model.from, found, fingerprint);
  fingerprint = found;
}

}  // namespace lockstep
