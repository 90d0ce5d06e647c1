// The table of configuration keys, shared by the files that read, print and explain configurations.
#pragma once

#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "trainer/config.h"

namespace lockstep {

// Where a key's value lives in a Config; the pointer's type is the key's type.
using ConfigSlot =
    std::variant<std::string*, bool*, int*, std::int64_t*, std::uint64_t*, double*, std::array<double, 2>*,
                 ModelFamily*, RopeScaling*, Precision*, Determinism*, Recompute*, TuneMethod*, TuneBias*, Packing*,
                 PreferenceLoss*, DeviceWish*, OptimizerName*, ScheduleName*>;

struct ConfigRange {
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  bool excludes_min = false;
  bool excludes_max = false;

  [[nodiscard]] bool contains(double value) const {
    return (excludes_min ? value > min : value >= min) && (excludes_max ? value < max : value <= max);
  }
};

struct ConfigKey {
  std::string_view name;  // "model.layers"
  ConfigSlot (*slot)(Config&);
  std::string_view help;
  ConfigRange range = {};                      // numbers
  std::vector<std::string_view> choices = {};  // strings; empty: any text
  std::string_view word_for_zero = {};         // written instead of 0, which is then not a value
  bool required = false;
};

// In the order in which they are printed; the keys of a section stand together.
[[nodiscard]] const std::vector<ConfigKey>& config_keys();

// "model" of "model.layers", and "layers".
[[nodiscard]] std::string_view section_of(const ConfigKey& key);
[[nodiscard]] std::string_view leaf_of(const ConfigKey& key);

// "an integer from 1 to 10000", "one of gpt2, llama".
[[nodiscard]] std::string expected_text(const ConfigKey& key);

// The value as it is written in YAML, except that strings are not quoted.
[[nodiscard]] std::string value_text(const ConfigKey& key, const Config& config);

// Reads `text` into the key's slot. Returns false, leaving `config` as it was, when it is not such a value. Not for
// pairs.
[[nodiscard]] bool assign_scalar(const ConfigKey& key, std::string_view text, Config& config);
// Reads the two numbers of a pair.
[[nodiscard]] bool assign_pair(const ConfigKey& key, std::string_view first, std::string_view second, Config& config);
[[nodiscard]] bool is_pair(const ConfigKey& key);

// Checks between keys that need no knowledge of the job. `origin` begins the messages. Throws Error(kUsage).
void check_consistency(const Config& config, const std::string& origin);

// Of training data without pairs of answers. Throws Error(kUsage) for a key of `preference` that is not as by default:
// nothing would come of it.
void check_no_preference(const Config& config);

// `config` with everything derived that follows from other keys alone: kv_heads, hidden, context, sequence,
// decay_steps.
[[nodiscard]] Config with_derived_shapes(Config config);

}  // namespace lockstep
