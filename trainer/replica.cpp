#include "trainer/replica.h"

namespace lockstep {

Replica::Replica(const Architecture& architecture, Precision precision, Backend& backend)
    : model_(architecture),
      backend_(backend),
      working_dtype_(precision == Precision::kBf16 ? DType::kBF16 : DType::kF32),
      master_(Buffer::allocate(layout().total() * sizeof(float))) {
  if (working_dtype_ != DType::kF32) {
    narrow_ = Buffer::allocate(layout().total() * size_of(working_dtype_));
  }
  weights_ = tensors_over(layout(), working());
}

BufferView Replica::working() const {
  const Buffer& buffer = working_dtype_ == DType::kF32 ? master_ : narrow_;
  return {buffer.data(), layout().total(), working_dtype_, backend_.device()};
}

void Replica::refresh() {
  if (working_dtype_ != DType::kF32) {
    backend_.convert(view_of(master()), working());
  }
}

}  // namespace lockstep
