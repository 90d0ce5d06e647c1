#include "trainer/model/transformer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "ops/matrices.h"
#include "ops/sequences.h"

namespace lockstep {
namespace {

constexpr std::uint64_t kSitesPerBlock = 4;
enum Site : std::uint64_t { kAttentionProbabilities, kAttentionBranch, kFeedForwardBranch };
// Where adapters drop, in a block.
constexpr std::uint64_t kAdaptersPerBlock = 4;
enum AdapterSite : std::uint64_t { kQkv, kAttentionOut, kUp, kDown };

std::int64_t rounded_up(std::int64_t value, std::int64_t granule) { return (value + granule - 1) / granule * granule; }

}  // namespace

// The capacity is rounded up so that attention may work on whole granules of keys.
KvCache::KvCache(const Architecture& architecture, DType dtype, Backend& backend) : capacity_(architecture.context) {
  const std::int64_t rows = rounded_up(capacity_, 64);
  const Shape shape{rows, architecture.kv_width()};
  const std::size_t bytes = static_cast<std::size_t>(shape.count()) * size_of(dtype);
  memory_ = backend.allocate(2 * bytes * static_cast<std::size_t>(architecture.layers));
  std::byte* next = memory_.data();
  for (std::int64_t layer = 0; layer < architecture.layers; ++layer) {
    layers_.push_back(
        {Tensor(next, shape, dtype, backend.device()), Tensor(next + bytes, shape, dtype, backend.device())});
    next += 2 * bytes;
  }
}

// One forward pass: where it computes, with what, on what.
struct Transformer::Context {
  Tape& tape;
  std::span<const Tensor> weights;
  Rows rows;
  DropoutStream dropout;
  KvCache* cache = nullptr;
  Recompute recompute = Recompute::kNone;
  bool has_adapters = true;

  [[nodiscard]] Tensor weight(int index) const {
    return index < 0 ? Tensor() : weights[static_cast<std::size_t>(index)];
  }
  [[nodiscard]] Dropout dropout_at(std::uint64_t site) const {
    return {dropout.probability, random_key(dropout.seed, RandomUse::kDropout, dropout.micro_batch, site)};
  }
  [[nodiscard]] Dropout dropout_in_block(std::int64_t layer, Site site) const {
    return dropout_at(1 + static_cast<std::uint64_t>(layer) * kSitesPerBlock + site);
  }
  [[nodiscard]] Dropout dropout_of_adapter(std::int64_t layer, std::uint64_t site) const {
    const std::uint64_t place = static_cast<std::uint64_t>(layer) * kAdaptersPerBlock + site;
    return {dropout.adapters, random_key(dropout.seed, RandomUse::kAdapterDropout, dropout.micro_batch, place)};
  }
  // Of one sequence, or of all rows where they are sequences of one length.
  [[nodiscard]] Noise noise(std::int64_t length, std::int64_t width, std::uint64_t index) const {
    const auto values = static_cast<float>(length * width);
    return {dropout.noise / std::sqrt(values),
            random_key(dropout.seed, RandomUse::kEmbeddingNoise, dropout.micro_batch, index)};
  }
  [[nodiscard]] std::int64_t first_position() const { return cache == nullptr ? 0 : cache->length(); }
};

Transformer::Transformer(const Architecture& architecture, const TuneConfig& tune)
    : architecture_(architecture),
      parameters_(make_parameters(architecture, tune)),
      adapter_scale_(static_cast<float>(tune.scale())) {
  if (!architecture_.is_gpt2()) {
    inverse_frequency_ = inverse_frequencies(architecture_);
  }
}

Tensor Transformer::hidden(const Context& context) const {
  Tensor x = embedding(context.tape,
                       {context.rows.inputs, context.rows.sequence, context.first_position(), context.rows.lengths},
                       {context.weight(parameters_.token_table), context.weight(parameters_.position_table)});
  if (context.dropout.noise > 0) {
    const auto add = [&](const SequenceRows& rows) {
      context.tape.backend().add_noise(context.noise(rows.length, architecture_.width, rows.index),
                                       x.slice(rows.begin, rows.batch * rows.length));  // its gradient is that of x
    };
    for_each_sequence("model", x.rows(), context.rows.sequence, context.rows.lengths, add);
  }
  x = dropout(context.tape, x, context.dropout_at(0));

  const BlockParameters& first = parameters_.blocks.front();
  Tensor y = norm(context.tape, x, norm_of(context, first.norm1_gain, first.norm1_bias));
  for (std::int64_t layer = 0; layer < architecture_.layers; ++layer) {
    const auto compute = [this, context, layer, x, y] { return block(context, layer, x, y); };
    std::array<Tensor, 2> outputs =
        context.recompute == Recompute::kBlock ? context.tape.recomputed(compute) : compute();
    x = std::move(outputs[0]);
    y = std::move(outputs[1]);
  }
  return y;
}

Norm Transformer::norm_of(const Context& context, int gain, int bias) const {
  const bool gpt2 = architecture_.is_gpt2();
  return {gpt2 ? NormKind::kLayer : NormKind::kRms, static_cast<float>(architecture_.norm_epsilon),
          context.weight(gain), context.weight(bias)};
}

// From the residual stream x and its norm y to those behind the block: the norm there belongs to the next block, or is
// the last one.
std::array<Tensor, 2> Transformer::block(const Context& context, std::int64_t layer, const Tensor& x,
                                         const Tensor& y) const {
  const BlockParameters& block = parameters_.blocks[static_cast<std::size_t>(layer)];
  const auto attend = [this, context, layer, y] { return std::array{attention(context, layer, y)}; };
  const auto [branch] = context.recompute == Recompute::kAttention ? context.tape.recomputed(attend) : attend();
  const SumAndNorm attended = add_norm(context.tape, x, branch, context.dropout_in_block(layer, kAttentionBranch),
                                       norm_of(context, block.norm2_gain, block.norm2_bias));

  const bool last = layer + 1 == architecture_.layers;
  const BlockParameters* next = last ? nullptr : &block + 1;
  const Norm next_norm = last ? norm_of(context, parameters_.final_gain, parameters_.final_bias)
                              : norm_of(context, next->norm1_gain, next->norm1_bias);
  SumAndNorm transformed = add_norm(context.tape, attended.sum, feed_forward(context, layer, attended.y),
                                    context.dropout_in_block(layer, kFeedForwardBranch), next_norm);
  return {std::move(transformed.sum), std::move(transformed.y)};
}

Tensor Transformer::attention(const Context& context, std::int64_t layer, const Tensor& x) const {
  const BlockParameters& block = parameters_.blocks[static_cast<std::size_t>(layer)];
  Tape& tape = context.tape;
  Tensor qkv = adapted(context, layer, {block.qkv, block.qkv_bias, block.qkv_adapter, kQkv}, x);
  if (architecture_.has_head_norm()) {
    qkv = head_norm(tape, qkv,
                    {architecture_.heads, architecture_.kv_heads, static_cast<float>(architecture_.norm_epsilon),
                     context.weight(block.query_norm), context.weight(block.key_norm)});
  }
  if (!architecture_.is_gpt2()) {
    const Tensor frequencies(const_cast<float*>(inverse_frequency_.data()),
                             Shape{static_cast<std::int64_t>(inverse_frequency_.size())}, DType::kF32);
    qkv = rotary_embedding(tape, qkv,
                           {architecture_.heads + architecture_.kv_heads, architecture_.head_dim, context.rows.sequence,
                            context.first_position(), frequencies, context.rows.lengths});
  }
  Tensor out;
  if (context.cache == nullptr) {
    out = self_attention(tape, qkv,
                         {context.rows.batch, architecture_.heads, architecture_.kv_heads,
                          context.dropout_in_block(layer, kAttentionProbabilities), context.rows.lengths});
  } else {
    const KvCache::Layer& cached = context.cache->layers_[static_cast<std::size_t>(layer)];
    out = cached_attention(tape, qkv,
                           {architecture_.heads, architecture_.kv_heads, context.cache->length(), cached.k, cached.v});
  }
  return adapted(context, layer,
                 {block.attention_out, block.attention_out_bias, block.attention_out_adapter, kAttentionOut}, out);
}

Linear Transformer::linear_of(const Context& context, const LinearParts& parts) const {
  return {context.weight(parts.weight), context.weight(parts.bias),
          architecture_.is_gpt2() ? WeightLayout::kInOut : WeightLayout::kOutIn};
}

Tensor Transformer::adapted(const Context& context, std::int64_t layer, const LinearParts& parts,
                            const Tensor& x) const {
  const Linear whole = linear_of(context, parts);
  const Adapter& adapter = parts.adapter;
  if (adapter.a < 0 || (!context.has_adapters && adapter.magnitude < 0)) {
    return linear(context.tape, x, whole);
  }
  if (!context.has_adapters) {
    // Rounded where it is with magnitudes, so that before any training the two are the same.
    const Tensor y = linear(context.tape, x, {whole.weight, Tensor(), whole.layout});
    if (whole.bias.is_defined()) {
      context.tape.backend().scale_columns(
          {.x = matrix_of(y), .y = matrix_of(y), .magnitude = {}, .norms = {}, .bias = whole.bias});
    }
    return y;
  }
  LowRank low_rank = low_rank_of(adapter, context.weights);
  low_rank.dropout = context.dropout_of_adapter(layer, parts.site);
  if (adapter.magnitude < 0) {
    return add_low_rank(context.tape, x, linear(context.tape, x, whole), low_rank);
  }
  const Tensor product = linear(context.tape, x, {whole.weight, Tensor(), whole.layout});
  return decompose(context.tape, add_low_rank(context.tape, x, product, low_rank),
                   {whole, low_rank, context.weight(adapter.magnitude)});
}

LowRank Transformer::low_rank_of(const Adapter& adapter, std::span<const Tensor> weights) const {
  return {.parts = adapter.parts,
          .a = weights[static_cast<std::size_t>(adapter.a)],
          .b = weights[static_cast<std::size_t>(adapter.b)],
          .scale = adapter_scale_,
          .dropout = {}};
}

// The second matrices are zero before any training, so the adapters say nothing yet.
void Transformer::initialize_magnitudes(Tape& tape, std::span<const Tensor> weights, std::span<float> trained) const {
  const WeightLayout layout = architecture_.is_gpt2() ? WeightLayout::kInOut : WeightLayout::kOutIn;
  const auto fill = [&](int weight, const Adapter& adapter) {
    if (adapter.magnitude < 0) {
      return;
    }
    const Tensor norms =
        norms_of(tape, {weights[static_cast<std::size_t>(weight)], Tensor(), layout}, low_rank_of(adapter, weights));
    const std::size_t place = parameters_.places[static_cast<std::size_t>(adapter.magnitude)].index;
    const std::span<float> values = trained.subspan(parameters_.layout.offset(place), parameters_.layout.count(place));
    const Tensor wide = tape.make(norms.shape(), DType::kF32);
    tape.backend().convert(norms.buffer(), wide.buffer());
    tape.backend().copy(wide.buffer(), view_of(values));
  };
  for (const BlockParameters& block : parameters_.blocks) {
    fill(block.qkv, block.qkv_adapter);
    fill(block.attention_out, block.attention_out_adapter);
    fill(block.up, block.up_adapter);
    fill(block.down, block.down_adapter);
  }
}

Tensor Transformer::feed_forward(const Context& context, std::int64_t layer, const Tensor& x) const {
  const BlockParameters& block = parameters_.blocks[static_cast<std::size_t>(layer)];
  const LinearParts up{block.up, block.up_bias, block.up_adapter, kUp};
  const LinearParts down{block.down, block.down_bias, block.down_adapter, kDown};
  const bool gpt2 = architecture_.is_gpt2();
  if (gpt2 && up.adapter.a < 0 && down.adapter.a < 0) {
    return gelu_mlp(context.tape, x, {linear_of(context, up), linear_of(context, down)});
  }
  const Tensor inner = adapted(context, layer, up, x);
  return adapted(context, layer, down, gpt2 ? gelu(context.tape, inner) : swiglu(context.tape, inner));
}

void Transformer::check(const Rows& rows) const {
  const std::int64_t longest = rows.lengths.empty() ? rows.sequence : std::ranges::max(rows.lengths);
  require(longest <= architecture_.context, "model: a sequence of {} is longer than the context of {}", longest,
          architecture_.context);
}

Loss Transformer::loss(Tape& tape, std::span<const Tensor> weights, const Rows& rows, const DropoutStream& dropout,
                       float scale, Recompute recompute) const {
  check(rows);
  const Context context{tape, weights, rows, dropout, nullptr, recompute};
  const Tensor y = hidden(context);
  return linear_cross_entropy(tape, y, {context.weight(parameters_.head), Tensor(), WeightLayout::kOutIn},
                              {rows.targets, scale, rows.with_likeliest});
}

Loss Transformer::sequence_loss(Tape& tape, std::span<const Tensor> weights, const Rows& rows,
                                const DropoutStream& dropout,
                                std::function<void(std::span<const double> sums, std::span<float>)> gradients,
                                Recompute recompute) const {
  check(rows);
  const Context context{tape, weights, rows, dropout, nullptr, recompute};
  const Tensor y = hidden(context);
  return sequence_cross_entropy(tape, y, {context.weight(parameters_.head), Tensor(), WeightLayout::kOutIn},
                                {rows.targets, rows.lengths, std::move(gradients)});
}

Loss Transformer::base_loss(Tape& tape, std::span<const Tensor> weights, const Rows& rows) const {
  check(rows);
  Context context{tape, weights, rows, {}};
  context.has_adapters = false;
  const Tensor y = hidden(context);
  return linear_cross_entropy(tape, y, {context.weight(parameters_.head), Tensor(), WeightLayout::kOutIn},
                              {rows.targets, 1});
}

Tensor Transformer::logits_of(const Context& context, const Tensor& y) const {
  const Linear head{context.weight(parameters_.head), Tensor(), WeightLayout::kOutIn};
  const Tensor logits = context.tape.make({y.dim(0), architecture_.vocab}, DType::kF32);
  context.tape.backend().gemm({.a = matrix_of(y), .b = weight_in_out(head), .d = matrix_of(logits)});
  return logits;
}

Tensor Transformer::logits(Tape& tape, std::span<const Tensor> weights, const Rows& rows) const {
  check(rows);
  const Context context{tape, weights, rows, {}};
  return logits_of(context, hidden(context));
}

Tensor Transformer::next_logits(Tape& tape, std::span<const Tensor> weights, std::span<const std::int32_t> tokens,
                                KvCache& cache) const {
  const auto count = static_cast<std::int64_t>(tokens.size());
  require(!tape.is_recording() && count > 0 && cache.length() + count <= cache.capacity(),
          "model: {} tokens after {} do not fit a cache of {}", count, cache.length(), cache.capacity());
  const Context context{tape, weights, {tokens, {}, 1, count}, {}, &cache};
  const Tensor y = hidden(context);
  cache.length_ += count;
  return logits_of(context, y.slice(count - 1, 1)).reshaped({architecture_.vocab});
}

}  // namespace lockstep
