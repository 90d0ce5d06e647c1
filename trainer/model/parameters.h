// The parameters of a model: which there are, in which order, under which Hugging Face names, and how they start.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "ops/tensor.h"
#include "trainer/flat_parameters.h"
#include "trainer/model/architecture.h"

namespace lockstep {

// Where the parameters of one block stand in the layout; -1 where the family has none.
struct BlockParameters {
  int norm1_gain = -1, norm1_bias = -1;
  int qkv = -1, qkv_bias = -1;         // fused: query, key, value
  int query_norm = -1, key_norm = -1;  // qwen3
  int attention_out = -1, attention_out_bias = -1;
  int norm2_gain = -1, norm2_bias = -1;
  int up = -1, up_bias = -1;  // gpt2: c_fc; the others: gate and up, fused
  int down = -1, down_bias = -1;
};

struct ModelParameters {
  ParameterLayout layout;  // in the order in which the backward pass finishes the gradients
  std::vector<BlockParameters> blocks;
  int token_table = -1;
  int position_table = -1;
  int final_gain = -1, final_bias = -1;
  int head = -1;  // token_table when tied
};

[[nodiscard]] ModelParameters make_parameters(const Architecture& architecture);

// Fills the flat master weights: normal(0, 0.02) for matrices, divided by sqrt(2 layers) for those that end a residual
// branch (Radford et al. 2019), 1 for gains, 0 for biases. Each value is a pure function of the seed, the parameter's
// name and its index.
void initialize(const Architecture& architecture, const ModelParameters& parameters, std::uint64_t seed,
                ThreadPool& pool, std::span<float> master);

// Tensors over a flat buffer (f32, bf16) in the layout's order, each carrying its parameter number.
[[nodiscard]] std::vector<Tensor> tensors_over(const ParameterLayout& layout, const BufferView& flat);

}  // namespace lockstep
