// Columns brought to a given length. What the functions compute is said in ops/backend.h.
#pragma once

#include "base/thread_pool.h"
#include "ops/backend.h"

namespace lockstep::cpu {

void row_norms(const Matrix& x, const Tensor& norms, ThreadPool& pool);
void scale_columns(const ColumnScale& scale, ThreadPool& pool);
void scale_columns_gradient(const ColumnScaleGradient& gradient, ThreadPool& pool);

}  // namespace lockstep::cpu
