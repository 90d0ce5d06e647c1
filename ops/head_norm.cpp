#include <array>

#include "base/error.h"
#include "ops/functions.h"

namespace lockstep {
namespace {

// The heads of one kind (queries or keys) inside the packed rows.
struct Heads {
  std::int64_t first = 0;
  std::int64_t count = 0;
  Tensor gain = {};
};

std::array<Heads, 2> parts_of(const HeadNorm& layer) {
  return {{{0, layer.heads, layer.query_gain}, {layer.heads, layer.kv_heads, layer.key_gain}}};
}

RowsView inside(const Tensor& packed, const Heads& heads) {
  const std::int64_t row = packed.dim(-1);
  return {static_cast<std::byte*>(packed.data()) +
              static_cast<std::size_t>(heads.first * heads.gain.dim(0)) * size_of(packed.dtype()),
          row, row * packed.rows()};
}

// The same values as rows of their own, a head each.
RowsView apart(const Tensor& rows, const Heads& heads) {
  const std::int64_t row = heads.count * heads.gain.dim(0);
  return {rows.data(), row, rows.count()};
}
Shape shape_apart(const Tensor& packed, const Heads& heads) { return {packed.rows() * heads.count, heads.gain.dim(0)}; }

void take_out(Backend& backend, const Tensor& packed, const Heads& heads, const Tensor& rows) {
  backend.copy_rows(inside(packed, heads), apart(rows, heads), packed.rows(), heads.count * heads.gain.dim(0),
                    packed.dtype());
}
void put_back(Backend& backend, const Tensor& rows, const Heads& heads, const Tensor& packed) {
  backend.copy_rows(apart(rows, heads), inside(packed, heads), packed.rows(), heads.count * heads.gain.dim(0),
                    packed.dtype());
}

void check(const Tensor& qkv, const HeadNorm& layer) {
  const std::int64_t groups = layer.heads + 2 * layer.kv_heads;
  require(layer.heads > 0 && layer.kv_heads > 0 && qkv.shape().rank() > 0 && qkv.dim(-1) % groups == 0,
          "head_norm: qkv {} does not hold {} + 2 x {} heads", qkv.shape(), layer.heads, layer.kv_heads);
  const Shape head{qkv.dim(-1) / groups};
  require(layer.query_gain.shape() == head && layer.key_gain.shape() == head,
          "head_norm: gains {} and {} do not fit heads {}", layer.query_gain.shape(), layer.key_gain.shape(), head);
}

}  // namespace

// The norm's kernels want rows of a head each, so the heads are copied out and back.
Tensor head_norm(Tape& tape, const Tensor& qkv, const HeadNorm& layer) {
  check(qkv, layer);

  std::array<NormForward, 2> forwards;
  const std::array<Heads, 2> parts = parts_of(layer);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    NormForward& forward = forwards[i];
    const Shape shape = shape_apart(qkv, parts[i]);
    forward.kind = NormKind::kRms;
    forward.epsilon = layer.epsilon;
    forward.x = tape.make(shape, qkv.dtype());
    forward.gain = parts[i].gain;
    forward.y = tape.make(shape, qkv.dtype());
    forward.rstd = tape.make({shape.dim(0)}, DType::kF32);
    take_out(tape.backend(), qkv, parts[i], forward.x);
    tape.backend().norm_forward(forward);
    put_back(tape.backend(), forward.y, parts[i], qkv);
    forward.y = Tensor();
  }
  Tensor normalised = qkv;
  normalised.variable = tape.new_variable({&qkv, &layer.query_gain, &layer.key_gain});

  tape.record(
      normalised, {&layer.query_gain, &layer.key_gain},
      [before = qkv.without_data(), normalised = normalised.without_data(), forwards, parts](Gradients& gradients) {
        Backend& backend = gradients.backend();
        const Tensor dy = gradients.take(normalised);
        const Tensor dx = gradients.make_from(dy);
        if (dx.data() != dy.data()) {
          backend.convert(dy.buffer(), dx.buffer());
        }
        for (std::size_t i = 0; i < parts.size(); ++i) {
          const NormForward& forward = forwards[i];
          const Tensor rows = gradients.make(forward.x.shape(), dy.dtype());
          take_out(backend, dy, parts[i], rows);
          const auto dgain = gradients.of_parameter(forward.gain);
          NormBackward backward;
          backward.kind = NormKind::kRms;
          backward.dy = rows;
          backward.sum = forward.x;
          backward.gain = forward.gain;
          backward.rstd = forward.rstd;
          backward.dx = gradients.make(forward.x.shape(), dy.dtype());
          backward.dgain = dgain.value;
          backward.accumulate_parameters = dgain.accumulate;
          backend.norm_backward(backward);
          put_back(backend, backward.dx, parts[i], dx);
        }
        gradients.add(before, dx);
      });
  return normalised;
}

}  // namespace lockstep
