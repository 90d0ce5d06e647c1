// The sizes of a tensor, outermost first, in row-major order.
#pragma once

#include <fmt/format.h>

#include <array>
#include <cassert>
#include <cstdint>
#include <initializer_list>
#include <string>

namespace lockstep {

class Shape {
 public:
  static constexpr int kMaxRank = 5;

  Shape() = default;
  Shape(std::initializer_list<std::int64_t> dims) {
    assert(dims.size() <= kMaxRank);
    for (const std::int64_t dim : dims) {
      dims_[static_cast<std::size_t>(rank_++)] = dim;
    }
  }

  [[nodiscard]] int rank() const { return rank_; }
  // Negative indices count from the end: dim(-1) is the innermost size.
  [[nodiscard]] std::int64_t dim(int index) const {
    const int i = index < 0 ? index + rank_ : index;
    assert(i >= 0 && i < rank_);
    return dims_[static_cast<std::size_t>(i)];
  }
  [[nodiscard]] std::int64_t count() const {
    std::int64_t product = 1;
    for (int i = 0; i < rank_; ++i) {
      product *= dims_[static_cast<std::size_t>(i)];
    }
    return product;
  }
  friend bool operator==(const Shape&, const Shape&) = default;

 private:
  std::array<std::int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

// "[8, 256, 384]"
[[nodiscard]] std::string to_string(const Shape& shape);

}  // namespace lockstep

template <>
struct fmt::formatter<lockstep::Shape> : fmt::formatter<std::string> {
  auto format(const lockstep::Shape& shape, fmt::format_context& context) const {
    return fmt::formatter<std::string>::format(lockstep::to_string(shape), context);
  }
};
