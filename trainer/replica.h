// One rank's copy of the model: architecture, master weights, and the weights that kernels read.
#pragma once

#include <span>
#include <vector>

#include "base/buffer.h"
#include "ops/backend.h"
#include "trainer/config.h"
#include "trainer/model/transformer.h"

namespace lockstep {

class Replica {
 public:
  // Weights are zero until something fills master() and calls refresh(). `backend` outlives it.
  Replica(const Architecture& architecture, Precision precision, Backend& backend);

  [[nodiscard]] const Transformer& model() const { return model_; }
  [[nodiscard]] const ParameterLayout& layout() const { return model_.parameters().layout; }
  [[nodiscard]] DType working_dtype() const { return working_dtype_; }
  [[nodiscard]] Backend& backend() const { return backend_; }

  // The flat f32 weights.
  [[nodiscard]] std::span<float> master() const { return master_.as<float>(layout().total()); }
  // The flat weights in the working dtype: master() itself in fp32.
  [[nodiscard]] BufferView working() const;
  // After each change of master(): brings the bf16 copy up to date.
  void refresh();

  // A tensor for each parameter over working().
  [[nodiscard]] std::span<const Tensor> weights() const { return weights_; }

 private:
  Transformer model_;
  Backend& backend_;
  DType working_dtype_;
  Buffer master_;
  Buffer narrow_;  // bf16
  std::vector<Tensor> weights_;
};

}  // namespace lockstep
