// How a model's tensors are called and laid out in GGUF files, as llama.cpp has them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "trainer/model/architecture.h"

namespace lockstep {

// How a tensor's values come from those under its Hugging Face name.
enum class GgufOrder : std::uint8_t {
  kAsIs,
  kTransposed,  // gpt2's [in, out]
  kPairs,       // llama's queries and keys: rows i and i + head_dim / 2 of a head side by side
};

struct GgufPlace {
  std::string name;                 // "blk.3.attn_q.weight" of "model.layers.3.self_attn.q_proj.weight"
  std::vector<std::int64_t> shape;  // row-major, in the GGUF file
  GgufOrder order = GgufOrder::kAsIs;
  std::int64_t heads = 0;  // kPairs
};

// Of a tensor by its Hugging Face name and shape. Throws Error(kUnsupported) for a name that GGUF has no place for.
[[nodiscard]] GgufPlace gguf_place_of(const Architecture& architecture, const std::string& hf_name,
                                      std::vector<std::int64_t> shape);

// All values of the tensor, from Hugging Face's order into GGUF's, and back.
void to_gguf_order(const GgufPlace& place, std::span<const float> values, std::span<float> ordered);
void from_gguf_order(const GgufPlace& place, std::span<const float> ordered, std::span<float> values);

// The tensor beside those of the layout: by how much the frequency of each pair of a head is divided. It is there for
// RopeScaling::kLlama3.
inline constexpr const char* kRopeFactorsName = "rope_freqs.weight";
[[nodiscard]] std::vector<float> rope_factors_of(const Architecture& architecture);

// Keys of our own, which other programs pass over: what kLlama3's factors were computed from, so that a model read back
// computes the same bits, and the chat template by its name.
inline constexpr const char* kGgufRopeFactor = "lockstep.rope.factor";
inline constexpr const char* kGgufRopeLowFreqFactor = "lockstep.rope.low_freq_factor";
inline constexpr const char* kGgufRopeHighFreqFactor = "lockstep.rope.high_freq_factor";
inline constexpr const char* kGgufRopeOriginalContext = "lockstep.rope.original_context";
inline constexpr const char* kGgufTemplateName = "lockstep.chat_template";

}  // namespace lockstep
