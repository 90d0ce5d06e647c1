// Reverse-mode automatic differentiation: ops record how to turn the gradient of their output into gradients of their
// inputs, and backward() runs the records in reverse.
//
// Only what leads to a gradient that is asked for is recorded: ops on tensors that are neither variables nor trained
// parameters give tensors that are no variables either.
//
// Memory follows the records: what an op captured is released as soon as its record has run, and a gradient as soon as
// it has been used. One thread uses a Tape. After backward() or clear() it is ready for the next step and keeps its
// memory, so that a steady step allocates nothing.
#pragma once

#include <array>
#include <cstddef>
#include <initializer_list>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#include "ops/arena.h"
#include "ops/backend.h"
#include "ops/tensor.h"

namespace lockstep {

// Receives the gradients of parameters: the flat gradient buffer.
class GradientSink {
 public:
  virtual ~GradientSink() = default;
  // Where the f32 gradient of a parameter goes, in the parameter's shape. Its contents are undefined until written.
  [[nodiscard]] virtual Tensor gradient_of(int parameter) = 0;
  // Called during backward(), once for each parameter that was used, when its gradient is final.
  virtual void gradient_ready(int parameter) = 0;
};

class Tape;

// What a record sees when it runs.
class Gradients {
 public:
  // The gradient of y, complete, moved out; undefined when nothing contributed to it.
  [[nodiscard]] Tensor take(const Tensor& y);
  // Whether x's gradient is asked for at all.
  [[nodiscard]] static bool wants(const Tensor& x) { return x.variable != Tensor::kNone; }
  // Adds dx to the gradient of x.
  void add(const Tensor& x, Tensor dx);

  // Where the gradient of a parameter goes, and whether one is there already that must be added to. For one that is not
  // trained: memory that nobody reads, for kernels that give several gradients at a time.
  struct OfParameter {
    Tensor value;  // f32
    bool accumulate = false;
  };
  [[nodiscard]] OfParameter of_parameter(const Tensor& parameter);

  // Uninitialised memory from the step arena.
  [[nodiscard]] Tensor make(const Shape& shape, DType dtype);
  // Memory for a result of dy's shape: dy itself when nobody else holds it, so that a kernel may work in place.
  [[nodiscard]] Tensor make_from(const Tensor& dy);
  [[nodiscard]] Backend& backend() const;

 private:
  friend class Tape;
  explicit Gradients(Tape& tape) : tape_(tape) {}
  Tape& tape_;
};

class Tape {
 public:
  // Without a sink nothing is recorded: evaluation and generation.
  Tape(Backend& backend, Arena& arena, GradientSink* sink) : backend_(backend), arena_(arena), sink_(sink) {}
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;
  ~Tape() { clear(); }

  [[nodiscard]] Backend& backend() const { return backend_; }
  [[nodiscard]] bool is_recording() const { return sink_ != nullptr && !is_paused_; }
  // Whether a parameter's gradient is asked for. False for undefined tensors.
  [[nodiscard]] static bool is_trained(const Tensor& parameter) {
    return parameter.is_defined() && parameter.parameter != Tensor::kNone;
  }

  // Uninitialised memory from the step arena.
  [[nodiscard]] Tensor make(const Shape& shape, DType dtype) { return {arena_, shape, dtype, backend_.device()}; }
  // The same, as a variable of this tape when it records.
  [[nodiscard]] Tensor make_variable(const Shape& shape, DType dtype);
  // The same, for the output of an op: a variable when one of the inputs is, or is a trained parameter. Undefined
  // tensors are passed over.
  [[nodiscard]] Tensor make_output(const Shape& shape, DType dtype, std::initializer_list<const Tensor*> inputs);
  // The number of a new variable under the same conditions, else Tensor::kNone.
  [[nodiscard]] int new_variable(std::initializer_list<const Tensor*> inputs);

  // For an op that computes the gradient of a parameter in its forward pass already; it must then record() that
  // parameter. See Gradients::of_parameter.
  [[nodiscard]] Gradients::OfParameter gradient_of_parameter(const Tensor& parameter) {
    return Gradients(*this).of_parameter(parameter);
  }

  // Keeps `backward(Gradients&)` until backward() reaches it. `parameters` names the parameters that it gives gradients
  // to (undefined tensors, and such that are not trained, are passed over). Does nothing when `output` is no variable,
  // or the tape does not record.
  template <typename Backward>
  void record(const Tensor& output, std::initializer_list<const Tensor*> parameters, Backward&& backward) {
    if (!is_recording() || output.variable == Tensor::kNone) {
      return;
    }
    using Closure = std::decay_t<Backward>;
    void* closure = new (closure_memory(sizeof(Closure), alignof(Closure))) Closure(std::forward<Backward>(backward));
    add_node(
        parameters, closure, [](void* c, Gradients& gradients) { (*static_cast<Closure*>(c))(gradients); },
        [](void* c) { static_cast<Closure*>(c)->~Closure(); });
  }

  // What `forward()` gives, an array of tensors that it computes from variables and constants of this tape. Nothing in
  // between is kept: backward() calls it once more for its records, so it must compute the same bits again, and the
  // parameters that it uses must not be used elsewhere (backward() throws Error(kUsage) when one is, later on). (Chen
  // et al. 2016, "Training Deep Nets with Sublinear Memory Cost".)
  template <typename Forward>
  [[nodiscard]] auto recomputed(const Forward& forward) {
    if (!is_recording()) {
      return forward();
    }
    auto outputs = [&] {
      const Pause pause(*this);
      return forward();
    }();
    auto handles = outputs;
    Tensor any;
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      if (outputs[i].variable != Tensor::kNone) {
        outputs[i].variable = number_of_new_variable();
        any = outputs[i].without_data();
      }
      handles[i] = outputs[i].without_data();
    }
    record(any, {},
           [forward, handles](Gradients& gradients) { gradients.tape_.run_again(forward, handles, gradients); });
    return outputs;
  }

  // Runs the records from the last to the first, starting from d(loss)/d(loss) = 1, and forgets them.
  void backward(const Tensor& loss);
  // Forgets all records.
  void clear();

 private:
  friend class Gradients;
  static constexpr std::size_t kMaxParameters = 4;

  struct Node {
    void* closure;
    void (*run)(void* closure, Gradients& gradients);
    void (*destroy)(void* closure);
    std::array<int, kMaxParameters> parameters;
  };
  struct ParameterUse {
    int pending = 0;  // records that have yet to give this parameter a gradient
    bool has_gradient = false;
    bool is_announced = false;  // as ready
  };

  // While it lives nothing is recorded.
  class Pause {
   public:
    explicit Pause(Tape& tape) : tape_(tape) { tape_.is_paused_ = true; }
    ~Pause() { tape_.is_paused_ = false; }
    Pause(const Pause&) = delete;
    Pause& operator=(const Pause&) = delete;

   private:
    Tape& tape_;
  };

  // Records forward() and runs the records, with the gradients that reached `handles`.
  template <typename Forward, typename Handles>
  void run_again(const Forward& forward, const Handles& handles, Gradients& gradients) {
    const std::size_t records = nodes_.size();
    {
      const Handles outputs = forward();
      for (std::size_t i = 0; i < outputs.size(); ++i) {
        if (Gradients::wants(handles[i])) {
          gradients.add(outputs[i], gradients.take(handles[i]));
        }
      }
    }
    run_down_to(records, gradients);
  }
  void run_down_to(std::size_t records, Gradients& gradients);
  int number_of_new_variable();
  void* closure_memory(std::size_t size_bytes, std::size_t alignment);
  void add_node(std::initializer_list<const Tensor*> parameters, void* closure, void (*run)(void*, Gradients&),
                void (*destroy)(void*));
  ParameterUse& use_of(int parameter);
  void finish_parameters(const Node& node);

  Backend& backend_;
  Arena& arena_;
  GradientSink* sink_;
  bool is_paused_ = false;
  std::vector<Node> nodes_;
  std::vector<Tensor> gradients_;  // by variable
  std::vector<ParameterUse> parameter_uses_;
  std::vector<std::unique_ptr<std::byte[]>> closure_pieces_;
  std::size_t closure_piece_ = 0;       // the piece in use
  std::size_t closure_used_bytes_ = 0;  // in it
};

}  // namespace lockstep
