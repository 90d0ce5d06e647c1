// Drives a GradReducer as a backward pass would, with gradients for which the order of adding shows.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "tests/comm/tree_reference.h"
#include "trainer/grad_reducer.h"

namespace lockstep {

// Parameters of sizes with and without padding: 3 + 35 + 16 + 1 + 400 elements.
inline ParameterLayout reducer_layout() {
  return ParameterLayout({{"a", {3}, false, {}},
                          {"b", {5, 7}, true, {}},
                          {"c", {16}, false, {}},
                          {"d", {1}, false, {}},
                          {"e", {20, 20}, true, {}}});
}

// The gradient of one micro-batch as a flat buffer: padding is zero.
inline std::vector<float> micro_batch_gradient(const ParameterLayout& layout, int micro_batch) {
  std::vector<float> flat(layout.total(), 0.0F);
  const std::vector<float> values = test::leaf_values<float>(micro_batch, layout.total());
  for (std::size_t p = 0; p < layout.size(); ++p) {
    const auto begin = static_cast<std::ptrdiff_t>(layout.offset(p));
    std::copy_n(values.begin() + begin, layout.count(p), flat.begin() + begin);
  }
  return flat;
}

// One backward pass whose gradients become ready in the order given.
inline void run_micro_batch(GradReducer& reducer, const ParameterLayout& layout, std::span<const float> gradient,
                            const std::vector<int>& order) {
  for (const int parameter : order) {
    const auto p = static_cast<std::size_t>(parameter);
    const std::span<float> target = reducer.gradient_of(parameter).as<float>();
    std::copy_n(gradient.begin() + static_cast<std::ptrdiff_t>(layout.offset(p)), target.size(), target.begin());
    reducer.gradient_ready(parameter);
  }
  reducer.end_micro_batch();
}

inline std::vector<int> layout_order(const ParameterLayout& layout) {
  std::vector<int> order(layout.size());
  std::iota(order.begin(), order.end(), 0);
  return order;
}

// Micro-batches [first, first + count) and the sum over all ranks.
inline std::vector<float> reduce(GradReducer& reducer, const ParameterLayout& layout, int first, int count) {
  for (int m = first; m < first + count; ++m) {
    run_micro_batch(reducer, layout, micro_batch_gradient(layout, m), layout_order(layout));
  }
  reducer.finish();
  return {reducer.gradient().begin(), reducer.gradient().end()};
}

inline std::vector<float> tree_sum_of(const ParameterLayout& layout, int first, int count) {
  std::vector<std::vector<float>> leaves;
  for (int m = first; m < first + count; ++m) {
    leaves.push_back(micro_batch_gradient(layout, m));
  }
  return test::reference_sum(leaves);
}

}  // namespace lockstep
