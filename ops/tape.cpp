#include "ops/tape.h"

#include <algorithm>
#include <cassert>

#include "base/error.h"

namespace lockstep {
namespace {

constexpr std::size_t kClosurePieceBytes = std::size_t{64} << 10;

}  // namespace

Tensor Gradients::take(const Tensor& y) {
  assert(y.variable != Tensor::kNone);
  return std::exchange(tape_.gradients_[static_cast<std::size_t>(y.variable)], Tensor());
}

void Gradients::add(const Tensor& x, Tensor dx) {
  if (!wants(x) || !dx.is_defined()) {
    return;
  }
  assert(dx.count() == x.count() && dx.dtype() == x.dtype());
  Tensor& sum = tape_.gradients_[static_cast<std::size_t>(x.variable)];
  if (!sum.is_defined()) {
    sum = std::move(dx);
    return;
  }
  // One gradient tensor may have been given to several variables; only memory that nobody else holds is overwritten.
  const Tensor out = sum.is_unique() ? sum : tape_.make(sum.shape(), sum.dtype());
  tape_.backend_.add(sum, dx, out);
  sum = out;
}

Gradients::OfParameter Gradients::of_parameter(const Tensor& parameter) {
  if (parameter.parameter == Tensor::kNone) {
    return {make(parameter.shape(), DType::kF32), false};
  }
  Tape::ParameterUse& use = tape_.use_of(parameter.parameter);
  return {tape_.sink_->gradient_of(parameter.parameter), std::exchange(use.has_gradient, true)};
}

Tensor Gradients::make(const Shape& shape, DType dtype) { return tape_.make(shape, dtype); }
Tensor Gradients::make_from(const Tensor& dy) { return dy.is_unique() ? dy : make(dy.shape(), dy.dtype()); }
Backend& Gradients::backend() const { return tape_.backend_; }

Tensor Tape::make_variable(const Shape& shape, DType dtype) {
  Tensor tensor = make(shape, dtype);
  tensor.variable = number_of_new_variable();
  return tensor;
}

Tensor Tape::make_output(const Shape& shape, DType dtype, std::initializer_list<const Tensor*> inputs) {
  Tensor tensor = make(shape, dtype);
  tensor.variable = new_variable(inputs);
  return tensor;
}

int Tape::new_variable(std::initializer_list<const Tensor*> inputs) {
  const auto leads_on = [](const Tensor* input) {
    return input->variable != Tensor::kNone || input->parameter != Tensor::kNone;
  };
  return std::any_of(inputs.begin(), inputs.end(), leads_on) ? number_of_new_variable() : Tensor::kNone;
}

int Tape::number_of_new_variable() {
  if (sink_ == nullptr) {
    return Tensor::kNone;
  }
  if (is_paused_) {
    return Tensor::kUnnumbered;
  }
  gradients_.emplace_back();
  return static_cast<int>(gradients_.size()) - 1;
}

void Tape::backward(const Tensor& loss) {
  require(is_recording(), "backward: the tape does not record");
  require(loss.count() == 1 && loss.variable != Tensor::kNone, "backward: expected a scalar made on this tape, got {}",
          loss.shape());
  Gradients gradients(*this);
  gradients.add(loss, make(loss.shape(), DType::kF32));  // 1, as who records the loss knows: it has no contents
  run_down_to(0, gradients);
  clear();
}

void Tape::run_down_to(std::size_t records, Gradients& gradients) {
  while (nodes_.size() > records) {
    const Node node = nodes_.back();
    nodes_.pop_back();
    node.run(node.closure, gradients);
    node.destroy(node.closure);
    finish_parameters(node);
  }
}

void Tape::clear() {
  while (!nodes_.empty()) {
    nodes_.back().destroy(nodes_.back().closure);
    nodes_.pop_back();
  }
  gradients_.clear();
  parameter_uses_.clear();
  closure_piece_ = 0;
  closure_used_bytes_ = 0;
}

void* Tape::closure_memory(std::size_t size_bytes, std::size_t alignment) {
  assert(size_bytes <= kClosurePieceBytes && alignment <= alignof(std::max_align_t));
  closure_used_bytes_ = (closure_used_bytes_ + alignment - 1) / alignment * alignment;
  if (closure_used_bytes_ + size_bytes > kClosurePieceBytes) {
    ++closure_piece_;
    closure_used_bytes_ = 0;
  }
  if (closure_piece_ == closure_pieces_.size()) {
    closure_pieces_.push_back(std::make_unique<std::byte[]>(kClosurePieceBytes));
  }
  std::byte* memory = closure_pieces_[closure_piece_].get() + closure_used_bytes_;
  closure_used_bytes_ += size_bytes;
  return memory;
}

void Tape::add_node(std::initializer_list<const Tensor*> parameters, void* closure, void (*run)(void*, Gradients&),
                    void (*destroy)(void*)) {
  Node node{closure, run, destroy, {}};
  node.parameters.fill(Tensor::kNone);
  std::size_t n = 0;
  for (const Tensor* parameter : parameters) {
    if (!parameter->is_defined() || parameter->parameter == Tensor::kNone) {
      continue;
    }
    assert(n < kMaxParameters);
    node.parameters[n++] = parameter->parameter;
    ParameterUse& use = use_of(parameter->parameter);
    require(!use.is_announced, "backward: parameter {} is used in a recomputed part and elsewhere",
            parameter->parameter);
    ++use.pending;
  }
  nodes_.push_back(node);
}

Tape::ParameterUse& Tape::use_of(int parameter) {
  const auto index = static_cast<std::size_t>(parameter);
  if (parameter_uses_.size() <= index) {
    parameter_uses_.resize(index + 1);
  }
  return parameter_uses_[index];
}

void Tape::finish_parameters(const Node& node) {
  for (const int parameter : node.parameters) {
    if (parameter == Tensor::kNone) {
      continue;
    }
    ParameterUse& use = parameter_uses_[static_cast<std::size_t>(parameter)];
    if (--use.pending == 0) {
      use.is_announced = true;
      sink_->gradient_ready(parameter);
    }
  }
}

}  // namespace lockstep
