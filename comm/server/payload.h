// Numbers and texts of payloads, one behind the other, as they lie in memory.
#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace lockstep::server {

// Writes numbers one behind the other.
class Writer {
 public:
  explicit Writer(std::span<std::byte> to) : to_(to) {}
  template <typename T>
  void put(const T& value) {
    assert(sizeof(T) <= to_.size());
    std::memcpy(to_.data(), &value, sizeof(T));
    to_ = to_.subspan(sizeof(T));
  }

 private:
  std::span<std::byte> to_;
};

// Reads them back. Throws Error(kCorrupt) that begins with `what`.
class Reader {
 public:
  Reader(std::span<const std::byte> from, std::string_view what) : from_(from), what_(what) {}
  template <typename T>
  [[nodiscard]] T get() {
    if (from_.size() < sizeof(T)) {
      fail(ErrorCode::kCorrupt, "server: {} that ends early", what_);
    }
    T value;
    std::memcpy(&value, from_.data(), sizeof(T));
    from_ = from_.subspan(sizeof(T));
    return value;
  }
  [[nodiscard]] std::string rest(std::size_t max_bytes) const {
    if (from_.size() > max_bytes) {
      fail(ErrorCode::kCorrupt, "server: {} with a text of {} bytes, expected at most {}", what_, from_.size(),
           max_bytes);
    }
    return {reinterpret_cast<const char*>(from_.data()), from_.size()};
  }
  void expect_end() const {
    if (!from_.empty()) {
      fail(ErrorCode::kCorrupt, "server: {} with {} bytes too many", what_, from_.size());
    }
  }

 private:
  std::span<const std::byte> from_;
  std::string_view what_;
};

// `numbers`, then `text`.
template <typename... Numbers>
[[nodiscard]] std::vector<std::byte> payload_of(std::string_view text, const Numbers&... numbers) {
  std::vector<std::byte> payload((sizeof(numbers) + ... + text.size()));
  Writer writer(payload);
  (writer.put(numbers), ...);
  std::memcpy(payload.data() + payload.size() - text.size(), text.data(), text.size());
  return payload;
}

}  // namespace lockstep::server
