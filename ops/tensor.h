// A Tensor is a handle to a dense row-major array: shape, element type, device, and a counted reference to its memory.
//
// Copies share memory. A tensor made by a Tape carries the number under which the tape knows its gradient; a tensor of
// a parameter carries the parameter's number.
#pragma once

#include <span>

#include "base/buffer.h"
#include "base/dtype.h"
#include "ops/arena.h"
#include "ops/packed.h"
#include "ops/shape.h"

namespace lockstep {

class Tensor {
 public:
  Tensor() = default;
  // Fresh, uninitialised memory.
  Tensor(Arena& arena, const Shape& shape, DType dtype, Device device = {})
      : shape_(shape),
        dtype_(dtype),
        device_(device),
        storage_(arena.allocate(static_cast<std::size_t>(shape.count()) * size_of(dtype))),
        data_(storage_.data()) {}
  // A frozen matrix in blocks of few bits, which somebody else owns; `dtype` is what it becomes when it is unpacked. It
  // has no data() until then: linear layers do that.
  Tensor(const PackedWeight& weight, const Shape& shape, DType dtype, Device device)
      : packed(weight), shape_(shape), dtype_(dtype), device_(device) {}
  // Memory that somebody else owns and keeps alive.
  Tensor(void* data, const Shape& shape, DType dtype, Device device = {})
      : shape_(shape), dtype_(dtype), device_(device), data_(static_cast<std::byte*>(data)) {}

  [[nodiscard]] bool is_defined() const { return data_ != nullptr; }
  [[nodiscard]] const Shape& shape() const { return shape_; }
  [[nodiscard]] std::int64_t dim(int index) const { return shape_.dim(index); }
  [[nodiscard]] std::int64_t count() const { return shape_.count(); }
  // All dimensions but the innermost, multiplied.
  [[nodiscard]] std::int64_t rows() const { return shape_.rank() == 0 ? 1 : count_before_last(); }
  [[nodiscard]] DType dtype() const { return dtype_; }
  [[nodiscard]] Device device() const { return device_; }
  [[nodiscard]] std::size_t size_bytes() const { return static_cast<std::size_t>(count()) * size_of(dtype_); }

  [[nodiscard]] void* data() const { return data_; }
  template <typename T>
  [[nodiscard]] T* data() const {
    assert(dtype_ == kDTypeOf<T>);
    return reinterpret_cast<T*>(data_);
  }
  template <typename T>
  [[nodiscard]] std::span<T> as() const {
    return {data<T>(), static_cast<std::size_t>(count())};
  }

  [[nodiscard]] BufferView buffer() const { return {data_, static_cast<std::size_t>(count()), dtype_, device_}; }

  // The same elements under another shape of equal count.
  [[nodiscard]] Tensor reshaped(const Shape& shape) const {
    assert(shape.count() == count());
    Tensor other = *this;
    other.shape_ = shape;
    return other;
  }
  // Rows [begin, begin + n) of the outermost dimension; shares memory, unknown to any tape.
  [[nodiscard]] Tensor slice(std::int64_t begin, std::int64_t n) const;

  // The same variable, shape and dtype without the memory: for a record that needs a tensor's gradient only.
  [[nodiscard]] Tensor without_data() const {
    Tensor other(nullptr, shape_, dtype_, device_);
    other.variable = variable;
    other.parameter = parameter;
    return other;
  }

  // True when no other tensor shares the memory, so that it may be overwritten.
  [[nodiscard]] bool is_unique() const { return storage_.is_unique(); }

  static constexpr int kNone = -1;
  static constexpr int kUnnumbered = -2;  // a variable, made while the tape's recording is paused
  int variable = kNone;                   // number of the gradient on the tape that made the tensor
  int parameter = kNone;  // number of the trained parameter that the tensor shows; a frozen one has none
  PackedWeight packed;

 private:
  [[nodiscard]] std::int64_t count_before_last() const {
    std::int64_t product = 1;
    for (int i = 0; i + 1 < shape_.rank(); ++i) {
      product *= shape_.dim(i);
    }
    return product;
  }

  Shape shape_;
  DType dtype_ = DType::kF32;
  Device device_;
  StorageRef storage_;
  std::byte* data_ = nullptr;
};

}  // namespace lockstep
