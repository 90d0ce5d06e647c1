// The order in which numbers of different ranks are added: what makes sums the same to the bit on every backend.
//
// The leaves 0..n-1 stand in order under a balanced binary tree that is filled up to a power of two with absent leaves.
// A node's value is left + right; a node whose right child is absent is its left child, without an addition. Every rank
// count that is a power of two therefore cuts the tree of a larger one at a level, and any other count still has one
// fixed order. See docs/determinism.md.
//
// Pure functions, safe from any thread.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "base/dtype.h"

namespace lockstep {

// "Add leaf `source` into leaf `target`"; after the last step leaf 0 holds the sum.
struct TreeStep {
  int target = 0;
  int source = 0;

  friend bool operator==(const TreeStep&, const TreeStep&) = default;
};

// The additions for `leaves` leaves, neighbours first: for 4 leaves 0+=1, 2+=3, 0+=2.
[[nodiscard]] std::vector<TreeStep> tree_steps(int leaves);

// target[i] += source[i], for f32 and f64. One node of the tree, for all elements. The two do not overlap.
void add_into(const BufferView& target, const BufferView& source);

// Element by element, sets every destination to the tree sum over the sources (leaf k is sources[k]). f32 and f64; at
// least one source. Each array holds `count` elements; a destination is one of the sources or overlaps none of them.
void tree_sum(std::span<const std::byte* const> sources, std::span<std::byte* const> destinations, std::size_t count,
              DType dtype);

}  // namespace lockstep
