#include "ops/shape.h"

namespace lockstep {

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (int i = 0; i < shape.rank(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape.dim(i));
  }
  return text + "]";
}

}  // namespace lockstep
