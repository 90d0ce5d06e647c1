// The decoder-only transformer of both families, from token ids to the loss or to the next token's logits.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "ops/functions.h"
#include "trainer/model/parameters.h"

namespace lockstep {

// Keys and values of the tokens seen so far, one sequence: what generation keeps instead of computing them again.
class KvCache {
 public:
  KvCache(const Architecture& architecture, DType dtype, Backend& backend);

  [[nodiscard]] std::int64_t length() const { return length_; }
  [[nodiscard]] std::int64_t capacity() const { return capacity_; }
  void clear() { length_ = 0; }

 private:
  friend class Transformer;
  struct Layer {
    Tensor k, v;  // [capacity, kv_heads * head_dim], zero from length on or left over from an earlier use: finite
  };
  Buffer memory_;
  std::vector<Layer> layers_;
  std::int64_t capacity_;
  std::int64_t length_ = 0;
};

class Transformer {
 public:
  explicit Transformer(const Architecture& architecture, const TuneConfig& tune = {});

  [[nodiscard]] const Architecture& architecture() const { return architecture_; }
  [[nodiscard]] const ModelParameters& parameters() const { return parameters_; }

  // Where dropout draws from in one micro-batch; each place in the model gets its own stream.
  struct DropoutStream {
    float probability = 0;
    std::uint64_t seed = 0;
    float adapters = 0;             // the probability in front of adapters
    float noise = 0;                // alpha of the noise on embeddings (Jain et al., NEFTune, 2023)
    std::uint64_t micro_batch = 0;  // step * micro_batches + index in the step: never the same twice in a run
  };
  struct Rows {
    std::span<const std::int32_t> inputs;   // [batch * sequence]
    std::span<const std::int32_t> targets;  // the same, -1: not trained on
    std::int64_t batch = 0;
    std::int64_t sequence = 0;
    SequenceLengths lengths = {};  // of the sequences in the rows; empty: each row is one. At most the context
    bool with_likeliest = false;   // loss() tells the likeliest tokens, too
  };
  // Loss of one micro-batch, scaled by `scale`. `weights` has a tensor for each parameter, by number, of a working
  // dtype: see tensors_over(). `recompute` trades memory for time and changes no bit. What is given by reference stays
  // valid until backward().
  [[nodiscard]] Loss loss(Tape& tape, std::span<const Tensor> weights, const Rows& rows, const DropoutStream& dropout,
                          float scale, Recompute recompute = Recompute::kNone) const;
  // A loss that is a function of the likelihoods of the sequences that rows.lengths tells apart: see SequenceTargets.
  [[nodiscard]] Loss sequence_loss(Tape& tape, std::span<const Tensor> weights, const Rows& rows,
                                   const DropoutStream& dropout,
                                   std::function<void(std::span<const double> sums, std::span<float>)> gradients,
                                   Recompute recompute = Recompute::kNone) const;
  // loss() of the model without its adapters. `tape` must not record.
  [[nodiscard]] Loss base_loss(Tape& tape, std::span<const Tensor> weights, const Rows& rows) const;

  // With tune.dora: fills the magnitudes in `trained`, the flat layout in f32 on the host, with the lengths that the
  // outputs' weights have before any training. Of `weights`, the frozen ones are read.
  void initialize_magnitudes(Tape& tape, std::span<const Tensor> weights, std::span<float> trained) const;

  // Logits [batch * sequence, vocab] f32 of the token after each input; targets are not read. `tape` must not record.
  [[nodiscard]] Tensor logits(Tape& tape, std::span<const Tensor> weights, const Rows& rows) const;

  // Logits [vocab] f32 of the token after `tokens`, which follow what the cache holds; the cache then holds them too.
  // `tape` must not record. cache.length() + tokens.size() is at most the capacity.
  [[nodiscard]] Tensor next_logits(Tape& tape, std::span<const Tensor> weights, std::span<const std::int32_t> tokens,
                                   KvCache& cache) const;

 private:
  struct Context;  // one forward pass
  void check(const Rows& rows) const;
  [[nodiscard]] Tensor hidden(const Context& context) const;
  [[nodiscard]] Tensor logits_of(const Context& context, const Tensor& y) const;
  [[nodiscard]] std::array<Tensor, 2> block(const Context& context, std::int64_t layer, const Tensor& x,
                                            const Tensor& y) const;
  [[nodiscard]] Norm norm_of(const Context& context, int gain, int bias) const;
  [[nodiscard]] Tensor attention(const Context& context, std::int64_t layer, const Tensor& x) const;
  [[nodiscard]] Tensor feed_forward(const Context& context, std::int64_t layer, const Tensor& x) const;
  // One linear layer of block `layer`, with its adapters.
  struct LinearParts {
    int weight, bias;
    const Adapter& adapter;
    std::uint64_t site;  // of the adapters' dropout within the block
  };
  [[nodiscard]] Linear linear_of(const Context& context, const LinearParts& parts) const;
  [[nodiscard]] LowRank low_rank_of(const Adapter& adapter, std::span<const Tensor> weights) const;
  [[nodiscard]] Tensor adapted(const Context& context, std::int64_t layer, const LinearParts& parts,
                               const Tensor& x) const;

  Architecture architecture_;
  ModelParameters parameters_;
  float adapter_scale_ = 1;
  std::vector<float> inverse_frequency_;  // of rotary positions
};

}  // namespace lockstep
