// The parameters of a model: which there are, in which order, under which Hugging Face names, how they start, and which
// of them are trained.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "ops/functions.h"
#include "ops/tensor.h"
#include "trainer/flat_parameters.h"
#include "trainer/model/architecture.h"

namespace lockstep {

// Numbers of parameters, here and below, count all of them in the order in which the backward pass finishes their
// gradients. With everything trained they are the places in the layout. -1: there is none.

// Low-rank matrices beside a linear layer; `parts` of its outputs have one each.
struct Adapter {
  int a = -1, b = -1;
  int magnitude = -1;  // tune.dora
  std::array<LowRank::Part, LowRank::kMostParts> parts = {};
};

struct BlockParameters {
  int norm1_gain = -1, norm1_bias = -1;
  int qkv = -1, qkv_bias = -1;         // fused: query, key, value
  int query_norm = -1, key_norm = -1;  // qwen3
  int attention_out = -1, attention_out_bias = -1;
  int norm2_gain = -1, norm2_bias = -1;
  int up = -1, up_bias = -1;  // gpt2: c_fc; the others: gate and up, fused
  int down = -1, down_bias = -1;
  Adapter qkv_adapter, attention_out_adapter, up_adapter, down_adapter;
};

struct ModelParameters {
  struct Place {
    bool trained = true;
    std::size_t index = 0;  // in `layout`, or in `frozen`
  };
  ParameterLayout layout;     // the trained ones
  ParameterLayout frozen;     // the others
  std::vector<Place> places;  // by number
  std::vector<BlockParameters> blocks;
  int token_table = -1;
  int position_table = -1;
  int final_gain = -1, final_bias = -1;
  int head = -1;  // token_table when tied
};

// Parameters keep their names whatever is trained. What is saved of them goes by Hugging Face's names, in a run with
// adapters by those that peft gives ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"). Throws
// Error(kUsage) for names in `tune` that fit no layer.
[[nodiscard]] ModelParameters make_parameters(const Architecture& architecture, const TuneConfig& tune = {});

// The names in a list with commas, as tune.targets and tune.also_train are written.
[[nodiscard]] std::vector<std::string> names_in(const std::string& list);

// Names of the linear layers that may have adapters: "q_proj", "c_attn", ...
[[nodiscard]] std::vector<std::string> linear_layers_of(const Architecture& architecture);

// Fills the flat master weights of the trained parameters: normal(0, 0.02) for matrices, divided by sqrt(2 layers) for
// those that end a residual branch (Radford et al. 2019), 1 for gains, 0 for biases; an adapter's first matrix is
// uniform in +-1 / sqrt(inputs), its second 0 (Hu et al. 2021, as peft does it). Each value is a pure function of the
// seed, the parameter's name and its index.
void initialize(const Architecture& architecture, const ModelParameters& parameters, std::uint64_t seed,
                ThreadPool& pool, std::span<float> master);

// Floating-point operations of a training step for one token: 6 x parameters + 12 x layers x query_width() x sequence
// (Chowdhery et al. 2022, appendix B). Of what is frozen, the gradient of a parameter is not computed (4), where no
// gradient comes by neither is that of its input (2), and rows that are looked up cost nothing.
[[nodiscard]] double training_flop_per_token(const Architecture& architecture, const ModelParameters& parameters,
                                             std::int64_t sequence);

// Of a vector or a matrix.
[[nodiscard]] Shape shape_of(const ParameterSpec& spec);

// By number, whether a parameter is a matrix of a linear layer of a block: with adapters or without, most of a model.
[[nodiscard]] std::vector<bool> are_block_matrices(const ModelParameters& parameters);

// By number, tensors over the flat buffer of `layout`, of a working dtype, which carry their place in it, and those of
// `frozen`, by their place there.
[[nodiscard]] std::vector<Tensor> tensors_over(const ModelParameters& parameters, const BufferView& trained,
                                               std::span<const Tensor> frozen);

}  // namespace lockstep
