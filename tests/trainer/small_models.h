// Small models for tests, with weights that are far from the usual start, so that every part of them matters.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/random.h"
#include "trainer/replica.h"

namespace lockstep {

inline Architecture small_gpt2() {
  Architecture a;
  a.family = ModelFamily::kGpt2;
  a.layers = 2;
  a.heads = a.kv_heads = 4;
  a.head_dim = 8;
  a.width = 32;
  a.hidden = 128;
  a.context = 24;
  a.vocab = 61;
  return a;
}

inline Architecture small_llama() {
  Architecture a = small_gpt2();
  a.family = ModelFamily::kLlama;
  a.kv_heads = 2;
  a.hidden = 48;
  a.tied = false;
  a.bias = false;
  return a;
}

// Matrices in [-0.25, 0.25), vectors in [0.75, 1.25).
inline void randomize(Replica& replica, std::uint64_t seed = 1) {
  const ParameterLayout& layout = replica.layout();
  replica.fill([&](std::span<float> weights) {
    for (std::size_t p = 0; p < layout.size(); ++p) {
      const float center = layout.specs()[p].shape.size() == 1 ? 1.0F : 0.0F;
      for (std::size_t i = 0; i < layout.count(p); ++i) {
        const auto word = philox({static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(p)}, i)[0];
        weights[layout.offset(p) + i] = center + 0.5F * (uniform_float(word) - 0.5F);
      }
    }
  });
}

inline std::vector<std::int32_t> random_tokens(std::size_t count, std::int64_t vocab, std::uint32_t seed = 3) {
  std::vector<std::int32_t> tokens(count);
  for (std::size_t i = 0; i < count; ++i) {
    tokens[i] = static_cast<std::int32_t>(philox({seed, 0}, i)[0] % static_cast<std::uint32_t>(vocab));
  }
  return tokens;
}

}  // namespace lockstep
