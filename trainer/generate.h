// Text, one token after another.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "trainer/replica.h"

namespace lockstep {

struct SamplingOptions {
  double temperature = 0.8;  // 0: always the most likely token
  int top_k = 0;             // only the k most likely; 0: all
  double top_p = 1.0;        // only the most likely whose probabilities reach p together (Holtzman et al. 2019)
  std::uint64_t seed = 1337;
};

// The token drawn at place `index` of the generated text: a pure function of its arguments.
[[nodiscard]] std::int32_t sample_token(std::span<const float> logits, const SamplingOptions& options,
                                        std::uint64_t index);

struct GenerateOptions {
  std::int64_t max_tokens = 256;
  SamplingOptions sampling{};
  std::vector<std::int32_t> stop_tokens{};  // each ends the text, and is not part of it
};

// Continues `prompt` (at least one token) and calls `on_token` for each new one until it returns false, max_tokens are
// made or a stop token comes. Keys and values are cached; beyond the model's context the older half of the text is
// forgotten. Throws Error(kUsage) for an empty prompt or a token outside the vocabulary.
void generate(const Replica& replica, Arena& arena, std::span<const std::int32_t> prompt,
              const GenerateOptions& options, const std::function<bool(std::int32_t token)>& on_token);

}  // namespace lockstep
