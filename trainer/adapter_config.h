// adapter_config.json of a folder with adapters, as peft reads and writes it.
#pragma once

#include <string>
#include <string_view>

#include "trainer/config.h"
#include "trainer/model/architecture.h"

namespace lockstep {

// Whether an embedding that is also the head is trained whole. peft then keeps the head as it was, unless its
// ensure_weight_tying is set; and with that it wants the head in the file as well, by this name.
[[nodiscard]] bool trains_shared_table(const Architecture& architecture, const TuneConfig& tune);
inline constexpr const char* kPeftHead = "base_model.model.lm_head.weight";

[[nodiscard]] std::string to_adapter_config(const TuneConfig& tune, const Architecture& architecture,
                                            const std::string& base);

struct AdapterConfig {
  TuneConfig tune;
  std::string base;           // base_model_name_or_path: a folder, or a name that means nothing here
  bool ties_weights = false;  // ensure_weight_tying
};
// `origin` is what messages call the text. Throws Error(kUsage) for adapters of another kind, naming the key.
[[nodiscard]] AdapterConfig from_adapter_config(std::string_view json, const std::string& origin);

}  // namespace lockstep
