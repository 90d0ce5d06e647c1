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

// What one call of the kernels works on: some of the rows of qkv and of the result.
struct SequencePart {
  SequenceRows place;
  AttentionShape shape;
  Dropout dropout;
  Tensor qkv;          // its rows
  Tensor out;          // likewise
  Tensor log_sum_exp;  // [batch, heads, length]; undefined when no gradient will be asked for
};

// Each sequence draws from a stream of its own.
RandomKey key_of_sequence(RandomKey key, std::uint64_t index) {
  const std::uint64_t mixed = mix64((std::uint64_t{key.k1} << 32 | key.k0) + index);
  return index == 0 ? key : RandomKey{static_cast<std::uint32_t>(mixed), static_cast<std::uint32_t>(mixed >> 32)};
}

// `log_sum_exp` is [rows, heads] or undefined: the parts of it follow one another as their rows do.
template <typename Call>
void for_each_part(const AttentionShape& all, const SelfAttention& attention, const Tensor& qkv, const Tensor& out,
                   const Tensor& log_sum_exp, const Call& call) {
  for_each_sequence("self_attention", qkv.rows(), all.query_length, attention.lengths, [&](const SequenceRows& rows) {
    SequencePart part;
    part.place = rows;
    part.shape = all;
    part.shape.batch = rows.batch;
    part.shape.query_length = part.shape.key_length = part.shape.key_capacity = rows.length;
    part.shape.varies = !attention.lengths.empty();
    part.dropout = {attention.dropout.probability, key_of_sequence(attention.dropout.key, rows.index)};
    const std::int64_t count = rows.batch * rows.length;
    part.qkv = qkv.slice(rows.begin, count);
    part.out = out.slice(rows.begin, count);
    if (log_sum_exp.is_defined()) {
      part.log_sum_exp = log_sum_exp.slice(rows.begin, count).reshaped({rows.batch, all.heads, rows.length});
    }
    call(part);
  });
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
  const Tensor log_sum_exp = trains ? tape.make({qkv.rows(), shape.heads}, DType::kF32) : Tensor();
  for_each_part(shape, attention, rows, out, log_sum_exp, [&](const SequencePart& part) {
    const Packed parts = parts_of(part.qkv, part.shape);
    tape.backend().attention_forward({.shape = part.shape,
                                      .dtype = qkv.dtype(),
                                      .q = parts.q,
                                      .k = parts.k,
                                      .v = parts.v,
                                      .dropout = part.dropout,
                                      .out = rows_of(part.out, part.shape),
                                      .log_sum_exp = part.log_sum_exp});
  });

  tape.record(out, {}, [qkv, rows, out, log_sum_exp, shape, attention](Gradients& gradients) {
    const Tensor dout = gradients.take(out);
    const Tensor dqkv = gradients.make(qkv.shape(), qkv.dtype());
    for_each_part(shape, attention, rows, out, log_sum_exp, [&](const SequencePart& part) {
      const std::int64_t first = part.place.begin;
      const std::int64_t count = part.place.batch * part.place.length;
      const Packed parts = parts_of(part.qkv, part.shape);
      const Packed dparts = parts_of(dqkv.reshaped(rows.shape()).slice(first, count), part.shape);
      gradients.backend().attention_backward({.shape = part.shape,
                                              .dtype = qkv.dtype(),
                                              .q = parts.q,
                                              .k = parts.k,
                                              .v = parts.v,
                                              .out = rows_of(part.out, part.shape),
                                              .dout = rows_of(dout.slice(first, count), part.shape),
                                              .dropout = part.dropout,
                                              .log_sum_exp = part.log_sum_exp,
                                              .dq = dparts.q,
                                              .dk = dparts.k,
                                              .dv = dparts.v});
    });
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
  const Tensor rows = qkv.reshaped({qkv.rows(), qkv.dim(-1)});
  for_each_sequence("rotary_embedding", rows.rows(), rotary.sequence, rotary.lengths, [&](const SequenceRows& part) {
    backend.rope({rotary.lengths.empty() ? rows : rows.slice(part.begin, part.length), rotary.heads, rotary.head_dim,
                  part.length, rotary.first_position, rotary.inverse_frequency, inverse});
  });
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
