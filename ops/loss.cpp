#include <algorithm>
#include <cassert>
#include <numeric>
#include <vector>

#include "base/error.h"
#include "ops/functions.h"
#include "ops/matrices.h"
#include "ops/sequences.h"

namespace lockstep {
namespace {

const Tensor& checked(const Tensor& x, const WeightSizes& sizes, std::span<const std::int32_t> targets) {
  require(x.shape().rank() > 0 && x.dim(-1) == sizes.in,
          "linear_cross_entropy: x {} does not fit a head with {} inputs", x.shape(), sizes.in);
  require(static_cast<std::int64_t>(targets.size()) == x.rows(), "linear_cross_entropy: {} targets for x {}",
          targets.size(), x.shape());
  for (const std::int32_t target : targets) {
    require(target >= -1 && target < sizes.out, "linear_cross_entropy: target {} is outside the vocabulary of {}",
            target, sizes.out);
  }
  return x;
}

// The head over the rows of x, a chunk of them at a time: logits = x w, loss = -log softmax(logits)[target], dlogits =
// scale * (softmax - onehot), and while they are there dx = dlogits w^T and dw += x^T dlogits. How many rows a chunk
// has depends on the vocabulary alone.
class HeadLoss {
 public:
  HeadLoss(Tape& tape, const Tensor& x, const Linear& head, std::span<const std::int32_t> targets,
           bool with_likeliest = false)
      : backend_(tape.backend()),
        head_(head),
        sizes_(sizes_of(head)),
        targets_(targets),
        x_(checked(x, sizes_, targets).reshaped({x.rows(), sizes_.in})) {
    require(!head.bias.is_defined(), "linear_cross_entropy: a head with a bias");
    const Backend::LogitsShape shape = backend_.logits_shape(sizes_.out, x.dtype());
    chunk_ = std::min(x.rows(), shape.rows);
    loss_.value = tape.make_output({1}, DType::kF32, {&x, &head.weight});
    trains_ = tape.is_recording() && Gradients::wants(loss_.value);
    logits_ = tape.make({chunk_, shape.stride}, shape.dtype);
    dlogits_ = trains_ && x.dtype() != shape.dtype ? tape.make(logits_.shape(), x.dtype()) : logits_;
    loss_.row_losses = tape.make({x.rows()}, DType::kF32);
    if (with_likeliest) {
      loss_.likeliest = tape.make({x.rows()}, DType::kI32);
    }
    loss_.backend = &backend_;
    loss_.count = std::ranges::count_if(targets, [](std::int32_t target) { return target >= 0; });
    if (trains_ && Gradients::wants(x)) {
      dx_ = tape.make(x.shape(), x.dtype());
    }
    if (trains_ && Tape::is_trained(head.weight)) {
      const Gradients::OfParameter gradient = tape.gradient_of_parameter(head.weight);
      dw_ = gradient.value;
      accumulate_ = gradient.accumulate;
    }
  }

  [[nodiscard]] bool trains() const { return trains_; }
  [[nodiscard]] const Loss& loss() const { return loss_; }

  // The losses of `count` rows, and their gradients times `scale`.
  void compute(std::int64_t begin, std::int64_t count, bool with_gradients, float scale) {
    for (std::int64_t done = 0; done < count; done += chunk_) {
      compute_chunk(begin + done, std::min(chunk_, count - done), with_gradients, scale);
    }
  }
  // Instead, for rows that the loss does not depend on.
  void leave_out(std::int64_t begin, std::int64_t count) {
    if (dx_.is_defined()) {
      backend_.fill_zero(rows_of_dx(begin, count));
    }
  }
  [[nodiscard]] Loss finish(Tape& tape, const Tensor& x) {
    if (dw_.is_defined() && !accumulate_) {
      backend_.fill_zero(dw_);  // no row was computed
    }
    tape.record(loss_.value, {&head_.weight}, [x, dx = dx_, value = loss_.value](Gradients& gradients) {
      static_cast<void>(gradients.take(value));
      gradients.add(x, dx);
    });
    return loss_;
  }

 private:
  [[nodiscard]] Tensor rows_of_dx(std::int64_t begin, std::int64_t count) const {
    return dx_.reshaped(x_.shape()).slice(begin, count);
  }

  void compute_chunk(std::int64_t begin, std::int64_t n, bool with_gradients, float scale) {
    const Tensor x_rows = x_.slice(begin, n);
    const Tensor logits = logits_.slice(0, n);
    const Tensor dlogits = dlogits_.slice(0, n);
    backend_.gemm({.a = matrix_of(x_rows), .b = weight_in_out(head_), .d = first_columns(logits, sizes_.out)});
    backend_.cross_entropy({.logits = logits,
                            .vocabulary = sizes_.out,
                            .targets = targets_.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(n)),
                            .scale = scale,
                            .dlogits = with_gradients ? dlogits : Tensor(),
                            .losses = loss_.row_losses.slice(begin, n),
                            .likeliest = loss_.likeliest.is_defined() ? loss_.likeliest.slice(begin, n) : Tensor()});
    const Matrix gradient = first_columns(dlogits, sizes_.out);
    if (with_gradients && dx_.is_defined()) {
      backend_.gemm({.a = gradient, .b = transposed(weight_in_out(head_)), .d = matrix_of(rows_of_dx(begin, n))});
    }
    if (with_gradients && dw_.is_defined()) {
      backend_.gemm(weight_gradient(head_, matrix_of(x_rows), gradient, dw_, accumulate_));
      accumulate_ = true;
    }
  }

  Backend& backend_;
  const Linear& head_;
  const WeightSizes sizes_;
  const std::span<const std::int32_t> targets_;
  const Tensor x_;  // [N, in]
  std::int64_t chunk_ = 0;
  bool trains_ = false;
  Loss loss_;
  Tensor logits_;
  Tensor dlogits_;
  Tensor dx_;  // in x's shape; undefined where it is not asked for
  Tensor dw_;
  bool accumulate_ = false;  // dw_ holds a sum already
};

// The values of a tensor on the host, those of a GPU by way of `copied`.
template <typename T>
std::span<const T> host_values(const Tensor& tensor, Backend& backend, std::vector<T>& copied) {
  if (tensor.device().kind == DeviceKind::kCpu) {
    return tensor.as<T>();
  }
  copied.resize(static_cast<std::size_t>(tensor.count()));
  backend.copy(tensor.buffer(), view_of(std::span(copied)));
  return copied;
}

double sum_of(std::span<const float> values) {
  return std::accumulate(values.begin(), values.end(), 0.0,
                         [](double total, float value) { return total + static_cast<double>(value); });
}

}  // namespace

double Loss::sum() const {
  std::vector<float> copied;
  return sum_of(host_values(row_losses, *backend, copied));
}

std::vector<double> Loss::sums(SequenceLengths lengths) const {
  std::vector<float> copied;
  std::span<const float> rest = host_values(row_losses, *backend, copied);
  std::vector<double> sums;
  for (const std::int64_t length : lengths) {
    sums.push_back(sum_of(rest.first(static_cast<std::size_t>(length))));
    rest = rest.subspan(static_cast<std::size_t>(length));
  }
  return sums;
}

std::int64_t Loss::hits(std::span<const std::int32_t> targets) const {
  std::vector<std::int32_t> copied;
  const std::span<const std::int32_t> guesses = host_values(likeliest, *backend, copied);
  assert(guesses.size() == targets.size());
  std::int64_t hits = 0;
  for (std::size_t i = 0; i < targets.size(); ++i) {
    hits += targets[i] >= 0 && guesses[i] == targets[i] ? 1 : 0;
  }
  return hits;
}

Loss linear_cross_entropy(Tape& tape, const Tensor& x, const Linear& head, const LossTargets& targets) {
  HeadLoss head_loss(tape, x, head, targets.targets, targets.with_likeliest);
  head_loss.compute(0, x.rows(), head_loss.trains(), targets.scale);
  return head_loss.finish(tape, x);
}

Loss sequence_cross_entropy(Tape& tape, const Tensor& x, const Linear& head, const SequenceTargets& targets) {
  HeadLoss head_loss(tape, x, head, targets.targets);
  head_loss.compute(0, x.rows(), false, 0);
  if (!head_loss.trains()) {
    return head_loss.finish(tape, x);
  }
  const std::vector<double> sums = head_loss.loss().sums(targets.lengths);
  std::vector<float> gradients(sums.size(), 0.0F);
  targets.gradients(sums, gradients);
  for_each_sequence("sequence_cross_entropy", x.rows(), x.rows(), targets.lengths, [&](const SequenceRows& rows) {
    const float gradient = gradients[rows.index];
    if (gradient == 0) {
      head_loss.leave_out(rows.begin, rows.length);
    } else {
      head_loss.compute(rows.begin, rows.length, true, gradient);
    }
  });
  return head_loss.finish(tape, x);
}

}  // namespace lockstep
