#include "ops/tensor.h"

namespace lockstep {

Tensor Tensor::slice(std::int64_t begin, std::int64_t n) const {
  assert(shape_.rank() > 0 && begin >= 0 && n >= 0 && begin + n <= dim(0));
  const std::int64_t row = dim(0) == 0 ? 0 : count() / dim(0);
  Tensor part = *this;
  part.variable = kNone;
  part.parameter = kNone;
  part.data_ = data_ + static_cast<std::size_t>(begin * row) * size_of(dtype_);
  Shape shape = shape_;
  switch (shape.rank()) {
    case 1:
      shape = {n};
      break;
    case 2:
      shape = {n, shape.dim(1)};
      break;
    case 3:
      shape = {n, shape.dim(1), shape.dim(2)};
      break;
    default:
      shape = {n, shape.dim(1), shape.dim(2), row / (shape.dim(1) * shape.dim(2))};
      break;
  }
  part.shape_ = shape;
  return part;
}

}  // namespace lockstep
