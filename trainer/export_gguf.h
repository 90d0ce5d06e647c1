// A trained model as a GGUF file, which llama.cpp runs.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/text/tokenizer.h"
#include "trainer/flat_parameters.h"
#include "trainer/formats/gguf_writer.h"
#include "trainer/model/architecture.h"

namespace lockstep {

// What the weights are kept as. The quantised ones mix types as llama.cpp's programs do.
enum class GgufKind : std::uint8_t { kF32, kF16, kBF16, kQ8_0, kQ4_0, kQ4_K_M, kQ6_K };
// "q4_k_m".
[[nodiscard]] std::string_view name_of(GgufKind kind);
[[nodiscard]] std::vector<std::string_view> gguf_kind_names();
// Throws Error(kUsage) that lists the names.
[[nodiscard]] GgufKind parse_gguf_kind(std::string_view name);

// The type of one tensor: what `kind` says for it, or a type that its rows are made of whole blocks of. `name` is
// GGUF's; `is_head` for the output, or the embedding where the two are one.
[[nodiscard]] GgmlType tensor_type(GgufKind kind, const GgufTensor& tensor, bool is_head, std::int64_t layers);

struct GgufSource {
  Architecture architecture;
  const ParameterLayout& layout;  // of `weights`
  std::span<const float> weights;
  const Tokenizer& tokenizer;
  HfTextEnds ends;  // of config.json; where it names none, the tokenizer's
  std::string name;
  std::string chat_template;       // Jinja, empty: none
  std::string template_name = {};  // ChatTemplate::name(), empty: not known
};
struct GgufSummary {
  std::uint64_t size_bytes = 0;
  std::uint64_t tensors = 0;
  std::map<std::string_view, int> fallbacks;  // tensors whose rows `kind` could not take, by the type they got
};
// `progress` is told how many tensors are written, of how many. Throws Error(kUnsupported) for a tokenizer that
// llama.cpp does not know, Error(kIo, kNoSpace).
GgufSummary export_gguf(const GgufSource& source, GgufKind kind, const std::filesystem::path& path,
                        const std::function<void(std::size_t done, std::size_t total)>& progress = {});

}  // namespace lockstep
