// Every differentiable op. Each checks its shapes, computes through the tape's backend, and records its gradient.
//
// x[N, C] stands for any tensor whose innermost size is C; N is the product of the others. Activations and parameters
// share one working dtype (f32, bf16 or f16); gradients of parameters are f32. A wrong shape throws Error(kUsage) that
// names the op and the shapes. Gradients of tensors that are not variables of the tape are not computed.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "ops/tape.h"

namespace lockstep {

// How a weight matrix lies in memory: GPT-2's [in, out] (Conv1D) or Llama's [out, in] (Linear).
enum class WeightLayout : std::uint8_t { kInOut, kOutIn };

struct Linear {
  Tensor weight;  // [in, out] or [out, in]
  Tensor bias;    // [out], may be undefined
  WeightLayout layout = WeightLayout::kOutIn;
};
// y[N, out] = x[N, in] weight + bias
[[nodiscard]] Tensor linear(Tape& tape, const Tensor& x, const Linear& layer);

// Low-rank adapters of a linear layer (Hu et al. 2021), one for each part of its outputs that has one:
//   y[:, part] += scale * dropout(x) a_part^T b_part^T
struct LowRank {
  struct Part {
    std::int64_t begin = 0;  // columns of y
    std::int64_t columns = 0;
  };
  static constexpr std::size_t kMostParts = 3;  // query, key, value

  std::array<Part, kMostParts> parts;  // in the order of their columns; those with no columns do not count
  Tensor a;                            // [parts * rank, in]: part after part
  Tensor b;                            // [the parts' columns, rank]: part after part
  float scale = 1;
  Dropout dropout;
};
// In place: the result shares y's memory, and y must not be used afterwards.
[[nodiscard]] Tensor add_low_rank(Tape& tape, const Tensor& x, const Tensor& y, const LowRank& layer);

// Weight-decomposed adapters (Liu et al. 2024, DoRA): x[N, out] is what `adapters` have made of `layer`'s outputs
// without the bias. Those of its parts are brought to a length of their own,
//   y[:, o] = x[:, o] * magnitude[o] / |w[:, o] + scale (b a)^T[:, o]| + bias[o]
// and the others get the bias alone. No gradient goes through the norm.
struct Decomposed {
  Linear layer;
  const LowRank& adapters;
  Tensor magnitude;  // [the parts' columns]: part after part
};
[[nodiscard]] Tensor decompose(Tape& tape, const Tensor& x, const Decomposed& layer);
// The norms: [the parts' columns], in the dtype of the weight.
[[nodiscard]] Tensor norms_of(Tape& tape, const Linear& layer, const LowRank& adapters);

// SequenceLengths are of sequences that add up to all rows; empty: all have the same length. They must stay valid until
// backward() has run.

// x[N, C] = tokens_table[tokens[n]] + positions_table[n % sequence]; positions_table[P, C] may be undefined. Token ids
// are checked against the table.
struct EmbeddingTables {
  Tensor tokens;     // [V, C]
  Tensor positions;  // [P, C] or undefined
};
struct TokenRows {
  std::span<const std::int32_t> tokens;  // [N]; must stay valid until backward() has run
  std::int64_t sequence = 0;             // rows that follow one another in one sequence
  std::int64_t first_position = 0;       // of each sequence
  SequenceLengths lengths = {};          // instead of `sequence`
};
[[nodiscard]] Tensor embedding(Tape& tape, const TokenRows& rows, const EmbeddingTables& tables);

struct Norm {
  NormKind kind = NormKind::kLayer;
  float epsilon = 1e-5F;
  Tensor gain;  // [C]
  Tensor bias;  // [C], kLayer, may be undefined
};
// y = norm(x)
[[nodiscard]] Tensor norm(Tape& tape, const Tensor& x, const Norm& layer);
// sum = x + dropout(branch), y = norm(sum), in one pass over memory.
struct SumAndNorm {
  Tensor sum;
  Tensor y;
};
[[nodiscard]] SumAndNorm add_norm(Tape& tape, const Tensor& x, const Tensor& branch, const Dropout& dropout,
                                  const Norm& layer);

struct HeadNorm {
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  float epsilon = 1e-6F;
  Tensor query_gain;  // [head_dim]
  Tensor key_gain;    // [head_dim]
};
// RMSNorm (Zhang, Sennrich 2019) of each query head and each key head of qkv, which is laid out as for self_attention.
// In place: the result shares qkv's memory, and qkv must not be used afterwards.
[[nodiscard]] Tensor head_norm(Tape& tape, const Tensor& qkv, const HeadNorm& layer);

struct SelfAttention {
  std::int64_t batch = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  Dropout dropout;               // on the attention probabilities
  SequenceLengths lengths = {};  // instead of `batch`: attention stays within each sequence
};
// Causal self-attention (Vaswani et al. 2017) with grouped queries (Ainslie et al. 2023). qkv[B * T, (heads + 2
// kv_heads) * head_dim] holds the query heads, then the key heads, then the value heads of each token; returns [B * T,
// heads * head_dim]. Scores are computed block by block, never T x T for the whole batch (Dao et al. 2022).
[[nodiscard]] Tensor self_attention(Tape& tape, const Tensor& qkv, const SelfAttention& attention);

struct CachedAttention {
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t cached = 0;  // tokens in the cache before this call
  Tensor k, v;              // [rows, kv_heads * head_dim]: the cache; rows is a multiple of 64, all of it finite
};
// The same for generation, one sequence, never recorded: the rows of qkv follow the cached tokens; their keys and
// values are appended to the cache first.
[[nodiscard]] Tensor cached_attention(Tape& tape, const Tensor& qkv, const CachedAttention& attention);

struct RotaryEmbedding {
  std::int64_t heads = 0;  // rotated at the start of each row: query heads + key heads
  std::int64_t head_dim = 0;
  std::int64_t sequence = 0;
  std::int64_t first_position = 0;
  Tensor inverse_frequency;      // [head_dim / 2] f32
  SequenceLengths lengths = {};  // instead of `sequence`
};
// Rotates in place: the result shares qkv's memory, and qkv must not be used afterwards.
[[nodiscard]] Tensor rotary_embedding(Tape& tape, const Tensor& qkv, const RotaryEmbedding& rotary);

[[nodiscard]] Tensor dropout(Tape& tape, const Tensor& x, const Dropout& dropout);
[[nodiscard]] Tensor gelu(Tape& tape, const Tensor& x);
// y = gelu(x up) down with the biases of both: GPT-2's MLP as one op, whose activation is part of the products.
struct GeluMlp {
  Linear up;
  Linear down;
};
[[nodiscard]] Tensor gelu_mlp(Tape& tape, const Tensor& x, const GeluMlp& layer);
// y[N, F] = silu(gate_up[:, :F]) * gate_up[:, F:]
[[nodiscard]] Tensor swiglu(Tape& tape, const Tensor& gate_up);
[[nodiscard]] Tensor add(Tape& tape, const Tensor& a, const Tensor& b);

struct LossTargets {
  std::span<const std::int32_t> targets;  // [N], -1: not trained on
  // The loss is scale * sum of -log p(target). With scale = 1 / (targets in the whole global batch) the gradients of
  // all micro-batches simply add up.
  float scale = 1;
  bool with_likeliest = false;  // fills Loss::likeliest
};
struct Loss {
  Tensor value;            // the scalar scale * sum(), for backward(): a variable without contents
  Tensor row_losses;       // [N] f32: -log p(target), 0 where there is none
  std::int64_t count = 0;  // targets that are not -1
  Tensor likeliest = {};   // [N] i32 where asked for: see CrossEntropy
  Backend* backend = nullptr;

  // Of row_losses, in their order. Waits for the device.
  [[nodiscard]] double sum() const;
  // The same of the rows of each sequence.
  [[nodiscard]] std::vector<double> sums(SequenceLengths lengths) const;
  // Of the op's targets [N], those that are the likeliest token of their row. Waits for the device.
  [[nodiscard]] std::int64_t hits(std::span<const std::int32_t> targets) const;
};
// The head and the cross-entropy as one op: logits[N, V] = x[N, C] weight exist only a chunk of rows at a time. On a
// recording tape the chunk's gradients are computed while its logits are there, so the loss must be what backward()
// starts from.
[[nodiscard]] Loss linear_cross_entropy(Tape& tape, const Tensor& x, const Linear& head, const LossTargets& targets);

// The same for losses that are functions of what whole sequences are given for a likelihood.
struct SequenceTargets {
  std::span<const std::int32_t> targets;  // [N], -1: does not count
  SequenceLengths lengths;
  // Given each sequence's sum of -log p(target), writes d(loss)/d(sum) of each. Called once, by a recording tape. Must
  // stay valid until the op has run.
  std::function<void(std::span<const double> sums, std::span<float> gradients)> gradients;
};
// Loss::sum() is that of all -log p(target). On a recording tape logits are computed twice, and the op waits for the
// device in between.
[[nodiscard]] Loss sequence_cross_entropy(Tape& tape, const Tensor& x, const Linear& head,
                                          const SequenceTargets& targets);

}  // namespace lockstep
