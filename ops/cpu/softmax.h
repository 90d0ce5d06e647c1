// The softmax of attention, for one block of query rows of one head: row kernels that attention calls inside its own
// parallel loop. They use no threads and no memory but what they are given; rows do not influence each other.
//
// Causal: row i of a block sees its first `first_length + i` columns (never more than `columns`), and the rest counts
// as masked. A row that sees nothing gets probabilities 0 and log_sum_exp -inf. NaN in a row's visible scores makes its
// probabilities NaN.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "ops/backend.h"

namespace lockstep::cpu {

// Dropout on a block of probabilities: element (i, j) is element `first + i * row_stride + j` of the Dropout's tensor.
struct ProbabilityDropout {
  Dropout dropout;
  std::uint64_t first = 0;
  std::int64_t row_stride = 0;
};

// p[i, j] = exp(scale * scores[i, j] - max) / sum, then dropout; 0 where masked.
struct SoftmaxRows {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t first_length = 0;
  float scale = 1;
  float* scores = nullptr;  // [rows, score_stride], destroyed
  std::int64_t score_stride = 0;
  DType dtype = DType::kF32;  // of the probabilities
  void* probabilities =
      nullptr;  // out [rows, probability_stride]; may be `scores` when both are f32 and the strides agree
  std::int64_t probability_stride = 0;  // elements
  float* log_sum_exp = nullptr;         // out [rows]: max + log(sum) of the scaled scores, before dropout; may be null
  ProbabilityDropout dropout;
};
void softmax_rows(const SoftmaxRows& args);

// Gradient of softmax_rows, from scores computed again:
//   p  = exp(scale * scores - log_sum_exp)
//   probabilities = p * m, m being what dropout multiplies by (1 without)
//   dscores = scale * p * (m * dprobabilities - delta): the gradient of the unscaled scores
struct SoftmaxBackwardRows {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t first_length = 0;
  float scale = 1;
  const float* scores = nullptr;  // [rows, score_stride]
  std::int64_t score_stride = 0;
  const float* dprobabilities = nullptr;  // [rows, dprobability_stride]
  std::int64_t dprobability_stride = 0;
  const float* log_sum_exp = nullptr;  // [rows]
  const float* delta = nullptr;        // [rows]: row_dots of the output and its gradient
  DType dtype = DType::kF32;           // of the two results
  // Out [rows, its stride], 0 where masked. In f32, probabilities may be `scores` and dscores may be `dprobabilities`
  // with the same stride.
  void* probabilities = nullptr;
  std::int64_t probability_stride = 0;
  void* dscores = nullptr;
  std::int64_t dscore_stride = 0;
  ProbabilityDropout dropout;
};
void softmax_backward_rows(const SoftmaxBackwardRows& args);

// dots[i] = sum over j of a[i, j] * b[i, j], for attention's delta.
struct RowDots {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  DType dtype = DType::kF32;  // of a and b
  const void* a = nullptr;
  std::int64_t a_stride = 0;  // elements
  const void* b = nullptr;
  std::int64_t b_stride = 0;
  float* dots = nullptr;  // out [rows]
};
void row_dots(const RowDots& args);

}  // namespace lockstep::cpu
