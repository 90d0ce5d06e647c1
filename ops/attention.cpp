#include <cmath>

#include "base/error.h"
#include "ops/functions.h"
#include "ops/sequences.h"

namespace lockstep {
namespace {

// One of q, k, v inside the packed rows.
RowsView part_of(const Tensor& packed, const AttentionShape& shape, std::int64_t first_head) {
  const std::int64_t row = packed.dim(-1);
  std::byte* data = static_cast<std::byte*>(packed.data()) +
                    static_cast<std::size_t>(first_head * shape.head_dim) * size_of(packed.dtype());
  return {data, row, row * shape.query_length};
}

struct Packed {
  RowsView q, k, v;
};
Packed parts_of(const Tensor& packed, const AttentionShape& shape) {
  return {part_of(packed, shape, 0), part_of(packed, shape, shape.heads),
          part_of(packed, shape, shape.heads + shape.kv_heads)};
}

AttentionShape shape_of(const Tensor& qkv, const SelfAttention& attention) {
  const std::int64_t groups = attention.heads + 2 * attention.kv_heads;
  require(attention.heads > 0 && attention.kv_heads > 0 && attention.heads % attention.kv_heads == 0,
          "self_attention: {} heads cannot share {} key heads evenly", attention.heads, attention.kv_heads);
  require(qkv.shape().rank() > 0 && qkv.dim(-1) % groups == 0, "self_attention: qkv {} does not hold {} + 2 x {} heads",
          qkv.shape(), attention.heads, attention.kv_heads);
  require(!attention.lengths.empty() || (attention.batch > 0 && qkv.rows() % attention.batch == 0),
          "self_attention: {} rows are no batch of {}", qkv.rows(), attention.batch);
  if (!attention.lengths.empty()) {
    check_sequences("self_attention", qkv.rows(), attention.lengths);
  }
  AttentionShape shape;
  shape.batch = attention.lengths.empty() ? attention.batch : 1;
  shape.query_length = qkv.rows() / shape.batch;
  shape.key_length = shape.query_length;
  shape.key_capacity = shape.query_length;
  shape.heads = attention.heads;
  shape.kv_heads = attention.kv_heads;
  shape.head_dim = qkv.dim(-1) / groups;
  shape.scale = 1.0F / std::sqrt(static_cast<float>(shape.head_dim));
  return shape;
}

RowsView rows_of(const Tensor& x, const AttentionShape& shape) {
  return {x.data(), x.dim(-1), x.dim(-1) * shape.query_length};
}

}  // namespace

// With S = scale q k^T under the causal mask, P = softmax(S), out = P v and delta = the row sums of dout * out:
//   dv = P^T dout      dS = P * (dout v^T - delta)      dq = scale dS k      dk = scale dS^T q
// P is recomputed from S and its saved log-sum-exp.
Tensor self_attention(Tape& tape, const Tensor& qkv, const SelfAttention& attention) {
  const AttentionShape shape = shape_of(qkv, attention);
  const Tensor rows = qkv.reshaped({qkv.rows(), qkv.dim(-1)});
  const Tensor out = tape.make_output({qkv.rows(), shape.heads * shape.head_dim}, qkv.dtype(), {&qkv});
  const bool trains = tape.is_recording() && Gradients::wants(out);
  const Tensor log_sum_exp = trains ? tape.make({shape.batch, shape.heads, shape.query_length}, DType::kF32) : Tensor();
  const Packed parts = parts_of(rows, shape);
  tape.backend().attention_forward({.shape = shape,
                                    .dtype = qkv.dtype(),
                                    .q = parts.q,
                                    .k = parts.k,
                                    .v = parts.v,
                                    .dropout = attention.dropout,
                                    .out = rows_of(out, shape),
                                    .log_sum_exp = log_sum_exp,
                                    .lengths = attention.lengths});

  tape.record(out, {}, [qkv, rows, out, log_sum_exp, shape, attention](Gradients& gradients) {
    const Tensor dout = gradients.take(out);
    const Tensor dqkv = gradients.make(qkv.shape(), qkv.dtype());
    const Packed values = parts_of(rows, shape);
    const Packed slopes = parts_of(dqkv.reshaped(rows.shape()), shape);
    gradients.backend().attention_backward({.shape = shape,
                                            .dtype = qkv.dtype(),
                                            .q = values.q,
                                            .k = values.k,
                                            .v = values.v,
                                            .out = rows_of(out, shape),
                                            .dout = rows_of(dout, shape),
                                            .dropout = attention.dropout,
                                            .log_sum_exp = log_sum_exp,
                                            .dq = slopes.q,
                                            .dk = slopes.k,
                                            .dv = slopes.v,
                                            .lengths = attention.lengths});
    gradients.add(qkv, dqkv);
  });
  return out;
}

Tensor cached_attention(Tape& tape, const Tensor& qkv, const CachedAttention& attention) {
  AttentionShape shape = shape_of(qkv, {1, attention.heads, attention.kv_heads, {}});
  const std::int64_t kv_width = shape.kv_heads * shape.head_dim;
  require(!tape.is_recording(), "cached_attention: the tape records");
  require(attention.k.shape() == attention.v.shape() && attention.k.dim(-1) == kv_width &&
              attention.cached + shape.query_length <= attention.k.dim(0),
          "cached_attention: {} rows after {} do not fit a cache of {}", shape.query_length, attention.cached,
          attention.k.shape());
  shape.key_length = attention.cached + shape.query_length;
  shape.key_capacity = attention.k.dim(0);

  const auto append = [&](const RowsView& rows, const Tensor& cache) {
    const RowsView to{cache.slice(attention.cached, shape.query_length).data(), kv_width, 0};
    tape.backend().copy_rows(rows, to, shape.query_length, kv_width, qkv.dtype());
  };
  const Packed parts = parts_of(qkv, shape);
  append(parts.k, attention.k);
  append(parts.v, attention.v);

  AttentionForward forward;
  forward.shape = shape;
  forward.dtype = qkv.dtype();
  forward.q = parts.q;
  forward.k = {attention.k.data(), kv_width, 0};
  forward.v = {attention.v.data(), kv_width, 0};
  const Tensor out = tape.make({qkv.rows(), shape.heads * shape.head_dim}, qkv.dtype());
  forward.out = rows_of(out, shape);
  tape.backend().attention_forward(forward);
  return out;
}

namespace {

void rotate(Backend& backend, const RotaryEmbedding& rotary, const Tensor& qkv, bool inverse) {
  backend.rope({qkv.reshaped({qkv.rows(), qkv.dim(-1)}), rotary.heads, rotary.head_dim, rotary.sequence,
                rotary.first_position, rotary.inverse_frequency, inverse, rotary.lengths});
}

}  // namespace

// Rotation by an angle that depends on the position only; its gradient is the rotation back.
Tensor rotary_embedding(Tape& tape, const Tensor& qkv, const RotaryEmbedding& rotary) {
  require(rotary.head_dim > 0 && rotary.head_dim % 2 == 0, "rotary_embedding: head size {}, expected an even number",
          rotary.head_dim);
  require(rotary.heads * rotary.head_dim <= qkv.dim(-1), "rotary_embedding: qkv {} does not hold {} heads of {}",
          qkv.shape(), rotary.heads, rotary.head_dim);
  require(rotary.inverse_frequency.shape() == Shape{rotary.head_dim / 2},
          "rotary_embedding: frequencies {}, expected [{}]", rotary.inverse_frequency.shape(), rotary.head_dim / 2);

  if (!rotary.lengths.empty()) {
    check_sequences("rotary_embedding", qkv.rows(), rotary.lengths);
  }
  require(rotary.inverse_frequency.device().kind == DeviceKind::kCpu,
          "rotary_embedding: the frequencies lie on a GPU, expected the host");

  rotate(tape.backend(), rotary, qkv, false);
  Tensor rotated = qkv;
  rotated.variable = tape.new_variable({&qkv});

  tape.record(rotated, {}, [before = qkv, rotated, rotary](Gradients& gradients) {
    const Tensor dy = gradients.take(rotated);
    const Tensor dx = gradients.make_from(dy);
    if (dx.data() != dy.data()) {
      gradients.backend().convert(dy.buffer(), dx.buffer());
    }
    rotate(gradients.backend(), rotary, dx, true);  // the gradient needs the angles, not the values
    gradients.add(before, dx);
  });
  return rotated;
}

}  // namespace lockstep
