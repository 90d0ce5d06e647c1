// Kernels that treat each element (or row) by itself. What they compute is said in ops/backend.h.
#pragma once

#include <span>

#include "base/buffer.h"
#include "base/thread_pool.h"
#include "ops/backend.h"

namespace lockstep::cpu {

void dropout(const Dropout& dropout, const Tensor& x, const Tensor& y, ThreadPool& pool);

void gelu_forward(const Tensor& x, const Tensor& y, ThreadPool& pool);
void gelu_backward(const Tensor& x, const Tensor& dy, const Tensor& dx, ThreadPool& pool);

void swiglu_forward(const Tensor& gate_up, const Tensor& y, ThreadPool& pool);
void swiglu_backward(const Tensor& gate_up, const Tensor& dy, const Tensor& dgate_up, ThreadPool& pool);

void add(const Tensor& a, const Tensor& b, const Tensor& out, ThreadPool& pool);
void scale(const Tensor& x, float factor, const Tensor& y, ThreadPool& pool);
void add_noise(const Noise& noise, const Tensor& x, ThreadPool& pool);
void unpack(const PackedWeight& weight, const Tensor& out, ThreadPool& pool);
void add_f32(std::span<const float> a, std::span<const float> b, std::span<float> out, ThreadPool& pool);

void convert(const BufferView& from, const BufferView& to, ThreadPool& pool);
// Rows [first, first + count) of one matrix into another of the same size, between f32 and bf16 or f16; on the
// calling thread.
void convert_rows(const Matrix& from, const Matrix& to, std::int64_t first, std::int64_t count);
void fill_zero(const Tensor& x, ThreadPool& pool);

}  // namespace lockstep::cpu
