// The sum of squares as training takes it: the sums of blocks, added in order.
#pragma once

#include <numeric>
#include <span>
#include <vector>

#include "ops/backend.h"

namespace lockstep::test {

inline double sum_of_squares(Backend& backend, std::span<const float> values) {
  std::vector<double> block_sums(squares_blocks(values.size()));
  backend.sums_of_squares(values, block_sums);
  return std::accumulate(block_sums.begin(), block_sums.end(), 0.0);
}

}  // namespace lockstep::test
