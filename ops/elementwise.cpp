#include "base/error.h"
#include "ops/functions.h"

namespace lockstep {

Tensor dropout(Tape& tape, const Tensor& x, const Dropout& dropout) {
  require(dropout.probability >= 0 && dropout.probability < 1, "dropout: probability {}, expected 0 <= p < 1",
          dropout.probability);
  if (dropout.probability == 0) {
    return x;
  }

  const Tensor y = tape.make_output(x.shape(), x.dtype(), {&x});
  tape.backend().dropout(dropout, x, y);

  tape.record(y, {}, [x, y, dropout](Gradients& gradients) {
    const Tensor dy = gradients.take(y);
    const Tensor dx = gradients.make_from(dy);
    gradients.backend().dropout(dropout, dy, dx);
    gradients.add(x, dx);
  });
  return y;
}

Tensor gelu(Tape& tape, const Tensor& x) {
  const Tensor y = tape.make_output(x.shape(), x.dtype(), {&x});
  tape.backend().gelu_forward(x, y);

  tape.record(y, {}, [x, y](Gradients& gradients) {
    const Tensor dy = gradients.take(y);
    const Tensor dx = gradients.make_from(dy);
    gradients.backend().gelu_backward(x, dy, dx);
    gradients.add(x, dx);
  });
  return y;
}

Tensor swiglu(Tape& tape, const Tensor& gate_up) {
  require(gate_up.shape().rank() > 0 && gate_up.dim(-1) % 2 == 0, "swiglu: gate_up {}, expected an even last dimension",
          gate_up.shape());

  const Tensor y = tape.make_output({gate_up.rows(), gate_up.dim(-1) / 2}, gate_up.dtype(), {&gate_up});
  tape.backend().swiglu_forward(gate_up, y);

  tape.record(y, {}, [gate_up, y](Gradients& gradients) {
    const Tensor dgate_up = gradients.make(gate_up.shape(), gate_up.dtype());
    gradients.backend().swiglu_backward(gate_up, gradients.take(y), dgate_up);
    gradients.add(gate_up, dgate_up);
  });
  return y;
}

Tensor add(Tape& tape, const Tensor& a, const Tensor& b) {
  require(a.shape() == b.shape() && a.dtype() == b.dtype(), "add: {} {} and {} {} differ", name_of(a.dtype()),
          a.shape(), name_of(b.dtype()), b.shape());

  const Tensor y = tape.make_output(a.shape(), a.dtype(), {&a, &b});
  tape.backend().add(a, b, y);

  tape.record(y, {}, [a, b, y](Gradients& gradients) {
    const Tensor dy = gradients.take(y);
    gradients.add(a, dy);
    gradients.add(b, dy);
  });
  return y;
}

}  // namespace lockstep
