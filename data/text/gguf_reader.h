// Reading the primitive values of a GGUF file, in order, with every access checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lockstep {

enum class GgufType : std::uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

class GgufReader {
 public:
  // Copies up to bytes.size() bytes from `offset`; returns how many there were.
  using Source = std::function<std::size_t(std::uint64_t offset, std::span<std::byte> bytes)>;

  GgufReader(Source source, std::uint64_t size, std::string_view name);

  // Each throws Error(kCorrupt) when the file ends before the value does, naming `what` and the place.
  [[nodiscard]] std::uint8_t u8(std::string_view what);
  [[nodiscard]] std::uint16_t u16(std::string_view what);
  [[nodiscard]] std::uint32_t u32(std::string_view what);
  [[nodiscard]] std::uint64_t u64(std::string_view what);
  [[nodiscard]] bool boolean(std::string_view what);
  [[nodiscard]] std::string string(std::string_view what, std::size_t max_bytes);
  [[nodiscard]] GgufType type(std::string_view what);

  // The head of an array: its elements' type and their number, of which the rest of the file has room for.
  struct Array {
    GgufType type = GgufType::kU8;
    std::uint64_t count = 0;
  };
  [[nodiscard]] Array array(std::string_view what);

  // Steps over a value.
  void skip(GgufType type, std::string_view what);
  // Over the elements of an array whose head was read. Throws Error(kUnsupported) for an array of arrays.
  void skip_elements(const Array& head, std::string_view what);

  [[nodiscard]] std::uint64_t position() const { return position_; }
  [[nodiscard]] const std::string& name() const { return name_; }

 private:
  void read(std::span<std::byte> bytes, std::string_view what);
  template <typename T>
  [[nodiscard]] T integer(std::string_view what);
  void skip_bytes(std::uint64_t count, std::string_view what);
  void require_left(std::uint64_t bytes, std::string_view what) const;

  Source source_;
  std::uint64_t size_ = 0;
  std::string name_;
  std::uint64_t position_ = 0;
  // A window of the file: window_start_ is the offset of its first byte.
  std::vector<std::byte> window_;
  std::uint64_t window_start_ = 0;
};

}  // namespace lockstep
