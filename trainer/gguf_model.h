// A model in a GGUF file: what it is made of, and its weights.
#pragma once

#include <filesystem>
#include <span>
#include <string>

#include "trainer/flat_parameters.h"
#include "trainer/formats/gguf_file.h"
#include "trainer/model/architecture.h"

namespace lockstep {

// Of the architectures gpt2, llama, qwen2 and qwen3, as llama.cpp's programs and export_gguf() write them. A mistral is
// a llama there.
class GgufModel {
 public:
  // Throws what GgufFile throws; Error(kUnsupported) naming the key that asks for what no model here does (another
  // architecture, experts, other rotary positions), Error(kCorrupt) naming one that is missing, Error(kUsage) for sizes
  // that do not go together.
  explicit GgufModel(const std::filesystem::path& path);

  [[nodiscard]] const Architecture& architecture() const { return architecture_; }
  // What ends a text beside the tokenizer's own end.
  [[nodiscard]] HfTextEnds text_ends() const;
  // ChatTemplate::name(), where the file was exported here; empty: not said.
  [[nodiscard]] std::string template_name() const;
  // In Jinja; empty: the file has none.
  [[nodiscard]] std::string chat_template() const;

  // Throws Error(kUsage) naming the first tensor that is missing, has another shape, or is not of the layout, which is
  // that of the architecture; Error(kUnsupported) for one whose type cannot be read.
  void check(const ParameterLayout& layout) const;
  // The values of one parameter of a layout that was checked, dequantised.
  void read(const ParameterSpec& spec, std::span<float> values) const;

 private:
  [[nodiscard]] std::int64_t size(const char* key) const;
  [[nodiscard]] std::int64_t size(const char* key, std::int64_t otherwise) const;
  [[nodiscard]] double real(const char* key, double otherwise) const;
  void read_sizes();
  void read_rope();
  void read_rope_factors();
  void check_keys() const;  // that say twice what is read elsewhere, or what no model here has

  GgufFile file_;
  std::string prefix_;  // of the architecture's keys: "llama."
  Architecture architecture_;
};

}  // namespace lockstep
