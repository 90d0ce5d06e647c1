// Adds the ranks' contributions to one piece of a sum along the tree of comm/sum_tree.h, whatever order they come in.
//
// A contribution is added as soon as its sibling is there, so of n contributions only those are kept whose sibling is
// still missing, and none longer than that.
#pragma once

#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "base/buffer.h"
#include "base/dtype.h"
#include "comm/sum_tree.h"

namespace lockstep::server {

// Contribution points to what holds the elements in bytes(), a std::span<std::byte>. Used by one thread.
template <typename Contribution>
class PieceSum {
 public:
  // `leaves` ranks, `count` elements of type `dtype` each.
  PieceSum(std::size_t leaves, std::size_t count, DType dtype) : leaves_(leaves), count_(count), dtype_(dtype) {}

  // Once for each leaf. Returns the sum with the last one: it lies in one of the contributions.
  [[nodiscard]] std::optional<Contribution> add(std::size_t leaf, Contribution value) {
    for (std::size_t width = 1; width < leaves_; width *= 2) {
      const std::size_t sibling = leaf ^ width;
      if (sibling < leaves_) {  // otherwise absent: the parent is this child
        auto other = waiting_.begin();
        while (other != waiting_.end() && (other->first_leaf != sibling || other->width != width)) {
          ++other;
        }
        if (other == waiting_.end()) {
          waiting_.push_back({leaf, width, std::move(value)});
          return {};
        }
        if (sibling < leaf) {
          std::swap(other->value, value);
        }
        add_into(view(value), view(other->value));
        waiting_.erase(other);
      }
      leaf &= ~width;
    }
    return value;
  }

 private:
  // The sum over leaves [first_leaf, first_leaf + width), those that are present.
  struct Node {
    std::size_t first_leaf;
    std::size_t width;
    Contribution value;
  };
  [[nodiscard]] BufferView view(const Contribution& value) const {
    return {value->bytes().data(), count_, dtype_, Device{}};
  }

  std::size_t leaves_;
  std::size_t count_;
  DType dtype_;
  std::vector<Node> waiting_;
};

}  // namespace lockstep::server
