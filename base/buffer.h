// Buffer owns a piece of memory; BufferView points into one.
#pragma once

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "base/device.h"
#include "base/dtype.h"

namespace lockstep {

// Elements [begin, end) of a buffer.
struct ElementRange {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;

  [[nodiscard]] std::uint64_t size() const { return end - begin; }
  friend bool operator==(const ElementRange&, const ElementRange&) = default;
};

// What `a` shares with `b`: a part of `a`, empty where they share nothing.
[[nodiscard]] inline ElementRange intersection(const ElementRange& a, const ElementRange& b) {
  const std::uint64_t begin = std::min(std::max(a.begin, b.begin), a.end);
  return {begin, std::max(begin, std::min(a.end, b.end))};
}

// A typed range in somebody else's memory: what collectives and the optimizer work on.
struct BufferView {
  void* data = nullptr;
  std::size_t count = 0;  // elements
  DType dtype = DType::kF32;
  Device device;

  [[nodiscard]] std::size_t size_bytes() const { return count * size_of(dtype); }
  template <typename T>
  [[nodiscard]] std::span<T> as() const {
    assert(dtype == kDTypeOf<T>);
    return {static_cast<T*>(data), count};
  }
  // Elements [begin, begin + n).
  [[nodiscard]] BufferView slice(std::size_t begin, std::size_t n) const {
    assert(begin <= count && n <= count - begin);
    return {static_cast<std::byte*>(data) + begin * size_of(dtype), n, dtype, device};
  }
  [[nodiscard]] BufferView slice(const ElementRange& range) const { return slice(range.begin, range.size()); }
};

template <typename T>
[[nodiscard]] BufferView view_of(std::span<T> values) {
  return {values.data(), values.size(), kDTypeOf<T>, Device{}};
}

// Owning, move-only. Memory is zeroed, aligned to 64 bytes (2 MiB and huge-page advised from 4 MiB up).
class Buffer {
 public:
  Buffer() = default;
  // Throws Error(kIo) when the operating system has no memory left.
  [[nodiscard]] static Buffer allocate(std::size_t size_bytes);
  // Takes memory that somebody else made; `release` is called with it once.
  Buffer(void* data, std::size_t size_bytes, std::function<void(void*)> release);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();

  [[nodiscard]] std::byte* data() const { return static_cast<std::byte*>(data_); }
  [[nodiscard]] std::size_t size_bytes() const { return size_bytes_; }
  // The first `count` elements seen as T.
  template <typename T>
  [[nodiscard]] std::span<T> as(std::size_t count) const {
    assert(count * sizeof(T) <= size_bytes_);
    return {static_cast<T*>(data_), count};
  }

 private:
  void* data_ = nullptr;
  std::size_t size_bytes_ = 0;
  std::function<void(void*)> release_;
};

}  // namespace lockstep
