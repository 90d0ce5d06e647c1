#include "trainer/shared_settings.h"

#include <algorithm>
#include <array>
#include <string>
#include <string_view>

#include "trainer/config_keys.h"

namespace lockstep {
namespace {

// Paths may differ, what they name may not: datasets and models are compared by their contents.
constexpr std::array<std::string_view, 15> kOwn = {
    "device.kind", "device.share",       "model.from",     "data.train",     "data.valid",
    "data.trace",  "data.read_ahead",    "train.threads",  "run.dir",        "comm.servers",
    "comm.tls_ca", "comm.shared_memory", "comm.timeout_s", "comm.silence_s", "comm.stuck_s"};

}  // namespace

std::vector<SharedFact> shared_settings(const Config& config) {
  std::vector<SharedFact> settings;
  for (const ConfigKey& key : config_keys()) {
    if (std::ranges::find(kOwn, key.name) == kOwn.end()) {
      settings.push_back({std::string(key.name), value_text(key, config)});
    }
  }
  return settings;
}

}  // namespace lockstep
