// The vectorised inner loop of sum_tree.h, compiled once for each instruction set and chosen at run time.
#pragma once

#include <cstddef>

namespace lockstep::comm_detail {

// The most arrays that one pass adds up in registers.
inline constexpr std::size_t kMaxFold = 8;

// Element by element, sets `destinations` to the balanced tree sum of `sources`. source_count is 1, 2, 4 or 8. A
// destination is one of the sources or overlaps none of them.
void fold(const float* const* sources, std::size_t source_count, float* const* destinations,
          std::size_t destination_count, std::size_t count);
void fold(const double* const* sources, std::size_t source_count, double* const* destinations,
          std::size_t destination_count, std::size_t count);

}  // namespace lockstep::comm_detail
