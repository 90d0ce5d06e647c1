// What of a configuration all ranks must have alike.
#pragma once

#include <vector>

#include "trainer/agreement.h"
#include "trainer/config.h"

namespace lockstep {

// Every key but those that a rank may have for itself: its threads, where its host has files and servers, how patient
// it is. For a configuration that is resolved.
[[nodiscard]] std::vector<SharedFact> shared_settings(const Config& config);

}  // namespace lockstep
