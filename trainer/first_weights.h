// What a run begins with.
#pragma once

#include <span>
#include <string>

#include "ops/backend.h"
#include "trainer/config.h"
#include "trainer/train_step.h"

namespace lockstep {

// Writes the trained parameters, f32 on the host, in the replica's layout: those of config.model.from, random ones
// without it, or, on top of it, what config.tune trains, which changes nothing yet. Fills the replica's frozen ones.
// Returns the fingerprint (base_model.h) of the model that a tuned run stands on; empty where all is trained. Throws
// what open_weights() throws.
[[nodiscard]] std::string write_first_weights(const Config& config, TrainStep& train_step, Backend& backend,
                                              std::span<float> weights);

// For a tuned run that goes on, all of it but the trained parameters. `fingerprint` is what the run began with. Throws
// Error(kUsage) where config.model.from is another model.
void load_base_again(const Config& config, Replica& replica, const std::string& fingerprint);

// The copy that preferences are measured against, where there is one: it is where the run began, also when that goes
// on. `fingerprint` is set, and compared where `goes_on`. Throws Error(kUsage) where config.model.from is another
// model.
void load_reference(const Config& config, TrainStep& train_step, bool goes_on, std::string& fingerprint);

}  // namespace lockstep
