// Trained weights that stand beside a model which they were trained on: adapters, or some of its layers.
#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <string>

#include "trainer/config.h"
#include "trainer/replica.h"

namespace lockstep {

struct TunedModel {
  std::filesystem::path folder;   // a checkpoint of a run that tuned, or what peft has saved
  std::filesystem::path weights;  // the file in it
  TuneConfig tune;
  std::filesystem::path base;    // the model's folder, as it was called then
  std::string base_fingerprint;  // see load_base(); empty where nobody has noted it: peft
  bool ties_weights = true;      // an embedding that is trained whole is the head's, where the model shares them
};

// In the metadata of exported adapters: base_fingerprint.
inline constexpr const char* kFingerprintKey = "lockstep.base_fingerprint";

// Nothing when `folder` holds a whole model, or none. Throws Error(kUsage, kCorrupt) for a damaged description.
[[nodiscard]] std::optional<TunedModel> find_tuned_model(const std::filesystem::path& folder);

// Fills a replica that was made with tuned.tune: frozen weights from `base`, trained ones from the tuned model. Throws
// Error(kUsage) when `base` is not the model that it was trained on, and what load_base() throws.
void load_tuned(const TunedModel& tuned, const std::filesystem::path& base, Replica& replica);

// The trained weights alone, f32, in the layout of make_parameters(architecture, tuned.tune). Throws Error(kUsage,
// kCorrupt) for files that are missing, damaged or not of that model.
void load_trained(const TunedModel& tuned, const ParameterLayout& layout, std::span<float> weights);

// The weights of the whole model, in the layout of make_parameters(architecture), f32: the adapters' products are
// added to the weights that they stand beside (Hu et al. 2021). Throws as load_tuned().
void load_merged(const TunedModel& tuned, const std::filesystem::path& base, const Architecture& architecture,
                 Backend& backend, std::span<float> weights);

}  // namespace lockstep
