// safetensors: a JSON header with the name, type, shape and position of each tensor, then the tensors' bytes.
//
// The reader trusts nothing: the header is at most 100 MB, an object without duplicate keys, and its tensors cover the
// data exactly, without hole or overlap. The writer computes the layout first, so that bytes go out in order, in
// pieces, and are hashed on the way. Messages name the file, the tensor, what was found and what was expected.
// Little-endian machines only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "base/file.h"

namespace lockstep {

enum class SafetensorsType : std::uint8_t {
  kF64,
  kF32,
  kF16,
  kBF16,
  kI64,
  kI32,
  kI16,
  kI8,
  kU64,
  kU32,
  kU16,
  kU8,
  kBool,
  // Known by size only, so that files with them can be listed.
  kC64,
  kF8E5M2,
  kF8E4M3,
  kF8E5M2Fnuz,
  kF8E4M3Fnuz,
  kF8E8M0,
  kF6E2M3,
  kF6E3M2,
  kF4,
};

// "F32", "BF16", ...: the names in the file.
[[nodiscard]] std::string_view name_of(SafetensorsType type);
// Of an element; F6_* and F4 are packed without gaps.
[[nodiscard]] std::size_t bits_of(SafetensorsType type);
// Bytes of an element, for types of whole bytes.
[[nodiscard]] std::size_t size_of(SafetensorsType type);
// kF32, kF64, kF16, kBF16 and the integers that DType has; throws Error(kUnsupported) for the others.
[[nodiscard]] DType to_dtype(SafetensorsType type);
[[nodiscard]] SafetensorsType to_safetensors(DType dtype);

struct SafetensorsTensor {
  std::string name;
  SafetensorsType type = SafetensorsType::kF32;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0;  // bytes from the start of the data, that is, behind the header
  std::uint64_t end = 0;

  [[nodiscard]] std::uint64_t count() const { return (end - begin) * 8 / bits_of(type); }
};

struct SafetensorsHeader {
  std::vector<SafetensorsTensor> tensors;  // in the order of their positions
  std::map<std::string, std::string> metadata;
  std::uint64_t data_begin = 0;  // bytes from the start of the file
};

inline constexpr std::uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;

// Checks and parses the JSON part of a header. `data_bytes` is the number of bytes that follow it in the file, `file`
// what messages call it. data_begin is left 0. Throws Error(kCorrupt); Error(kUnsupported) for a type that is not
// listed above.
[[nodiscard]] SafetensorsHeader parse_safetensors_header(std::string_view json, std::uint64_t data_bytes,
                                                         const std::string& file);

// An open file whose header was checked. Reads are positioned: threads may share it.
class SafetensorsFile {
 public:
  // Throws Error(kIo, kCorrupt, kUnsupported).
  explicit SafetensorsFile(const std::filesystem::path& path);

  [[nodiscard]] const SafetensorsHeader& header() const { return header_; }
  [[nodiscard]] const std::filesystem::path& path() const { return file_.path(); }
  // nullptr when there is no tensor of this name.
  [[nodiscard]] const SafetensorsTensor* find(std::string_view name) const;
  // Throws Error(kCorrupt) naming the file when there is no tensor of this name.
  [[nodiscard]] const SafetensorsTensor& get(std::string_view name) const;

  // Reads bytes.size() bytes of the tensor from `offset_bytes` on.
  void read(const SafetensorsTensor& tensor, std::uint64_t offset_bytes, std::span<std::byte> bytes) const;
  // Reads values.size() elements from `first` on as f32. The tensor is F32, F16 or BF16 (exact), or F64 (rounded);
  // another type is Error(kUnsupported) naming it.
  void read_f32(const SafetensorsTensor& tensor, std::uint64_t first, std::span<float> values) const;

 private:
  File file_;
  SafetensorsHeader header_;
  std::map<std::string, std::size_t, std::less<>> index_;
};

// The first bytes of a file that holds `tensors` in the given order (begin and end are computed), padded so that the
// data begin at a multiple of 8. `metadata` should hold {"format": "pt"} for transformers. Throws Error(kUsage) when a
// name repeats, or a tensor would begin at a position that its type's size does not divide (order wide types first).
struct SafetensorsLayout {
  std::string head;
  std::vector<SafetensorsTensor> tensors;
  std::uint64_t data_bytes = 0;

  SafetensorsLayout(std::vector<SafetensorsTensor> tensors_in_order,
                    const std::map<std::string, std::string>& metadata);
};

}  // namespace lockstep
