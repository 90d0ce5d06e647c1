// LLaMA-Factory's training files: `lockstep train llama3_lora_sft.yaml` does what they say.
//
// The keys become settings of a Lockstep configuration and datasets to pack, each with a line that says what became of
// it. A key whose wish cannot be honoured ends the program; keys about how LLaMA-Factory works inside are told and
// left.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "data/pack/pack.h"

namespace lockstep {

struct LlamaFactoryJob {
  std::vector<std::string> settings;  // KEY=VALUE, as --set takes them
  std::vector<std::string> notes;     // "lora_rank: 8 -> tune.rank=8"
  // The datasets of data.train and data.valid; the second is missing where the first one's validation split serves.
  std::vector<PackOptions> packs;
  // overwrite_output_dir: where the data is other than the run in output_dir was trained on, the run starts over.
  bool starts_over_on_other_data = false;
};

// Whether a YAML text is such a file and not a Lockstep configuration. False for a text that is not YAML.
[[nodiscard]] bool is_llama_factory(std::string_view yaml);

// `world` is the number of ranks, which batches are counted by there; `resume` is that of `lockstep train`: data that a
// run is trained on is packed anew where it starts over. Reads dataset_info.json and the model's
// config.json and, for a val_size that is a number of samples, the data. Throws Error(kUsage) in the form
//   sft.yaml: quantization_bit is 4, which cannot be honoured yet: ...
[[nodiscard]] LlamaFactoryJob read_llama_factory(std::string_view yaml, const std::string& origin, int world,
                                                 const std::string& resume = "auto");

}  // namespace lockstep
