// Kernels that go element by element; see ops/backend.h for what each computes. All run in `stream`.
#pragma once

#include <cuda_runtime_api.h>

#include "ops/backend.h"

namespace lockstep::cuda {

void dropout(const Dropout& dropout, const Tensor& x, const Tensor& y, cudaStream_t stream);
void gelu_forward(const Tensor& x, const Tensor& y, cudaStream_t stream);
void gelu_backward(const Tensor& x, const Tensor& dy, const Tensor& dx, cudaStream_t stream);
void swiglu_forward(const Tensor& gate_up, const Tensor& y, cudaStream_t stream);
void swiglu_backward(const Tensor& gate_up, const Tensor& dy, const Tensor& dgate_up, cudaStream_t stream);
void add(const Tensor& a, const Tensor& b, const Tensor& out, cudaStream_t stream);
void scale(const Tensor& x, float factor, const Tensor& y, cudaStream_t stream);
void add_noise(const Noise& noise, const Tensor& x, cudaStream_t stream);
void add_f32(std::span<const float> a, std::span<const float> b, std::span<float> out, cudaStream_t stream);
void convert(const BufferView& from, const BufferView& to, cudaStream_t stream);
void adamw(const AdamW& adamw, cudaStream_t stream);

}  // namespace lockstep::cuda
