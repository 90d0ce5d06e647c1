// Reading GGUF files (versions 2 and 3, little-endian): keys and values, what tensors there are, and their values.
//
// The reader trusts nothing: every count and length is checked against what is left of the file before memory is taken
// for it, tensors lie at multiples of the file's alignment, within it and apart from one another. Messages name the
// file, the key or tensor, what was found and what was expected. Where tensors end and the file goes on, that is
// padding.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/file.h"
#include "data/text/gguf_reader.h"
#include "trainer/formats/ggml_blocks.h"

namespace lockstep {

// Of an array only what it is made of: vocabularies are read where they are needed (data/text/gguf_vocab.h).
using GgufValue = std::variant<std::uint64_t, std::int64_t, double, bool, std::string, GgufReader::Array>;

// How a tensor's values are kept: a row of ggml's table of types.
struct GgufTensorType {
  std::uint32_t number = 0;
  std::string_view name;          // "Q5_K"
  std::int64_t block_values = 1;  // a row is made of whole blocks
  std::uint64_t block_bytes = 1;
  std::optional<GgmlType> readable;  // none: known by size only, so that files with it can be listed
};

struct GgufFileTensor {
  std::string name;
  std::vector<std::int64_t> shape;  // row-major: [rows, columns] or [columns]
  GgufTensorType type;
  std::uint64_t begin = 0;  // bytes from the start of the file
  std::uint64_t bytes = 0;

  [[nodiscard]] std::uint64_t count() const {
    return bytes / type.block_bytes * static_cast<std::uint64_t>(type.block_values);
  }
};

// Whether the file at `path` begins as GGUF files do. Throws Error(kIo).
[[nodiscard]] bool is_gguf_file(const std::filesystem::path& path);

// An open file whose description was checked. Reads are positioned: threads may share it.
class GgufFile {
 public:
  // Throws Error(kIo); Error(kCorrupt); Error(kUnsupported) for another version, or for a tensor's type that is not
  // ggml's.
  explicit GgufFile(const std::filesystem::path& path);

  [[nodiscard]] const std::filesystem::path& path() const { return file_.path(); }
  [[nodiscard]] std::uint32_t version() const { return version_; }
  [[nodiscard]] std::uint64_t alignment() const { return alignment_; }

  [[nodiscard]] const std::map<std::string, GgufValue, std::less<>>& metadata() const { return metadata_; }
  // The value of a key as the type that is asked for; nothing where the key is missing. Throws Error(kUnsupported)
  // naming the key for a value of another kind, or one that does not fit.
  [[nodiscard]] std::optional<std::int64_t> number(std::string_view key) const;
  [[nodiscard]] std::optional<double> real(std::string_view key) const;  // an integer is one, too
  [[nodiscard]] std::optional<std::string> text(std::string_view key) const;
  [[nodiscard]] std::optional<GgufReader::Array> array(std::string_view key) const;

  [[nodiscard]] const std::vector<GgufFileTensor>& tensors() const { return tensors_; }  // by their positions
  // nullptr when there is no tensor of this name.
  [[nodiscard]] const GgufFileTensor* find(std::string_view name) const;
  // All values of a tensor, tensor.count() of them. Throws Error(kUnsupported) naming tensor and type unless
  // dequantize() knows it.
  void read(const GgufFileTensor& tensor, std::span<float> values) const;

 private:
  void read_metadata(GgufReader& reader, std::uint64_t keys);
  void read_tensors(GgufReader& reader, std::uint64_t count);
  void check_places(std::uint64_t data_begin);
  [[nodiscard]] const GgufValue* value(std::string_view key) const;

  File file_;
  std::uint32_t version_ = 0;
  std::uint64_t alignment_ = 32;
  std::map<std::string, GgufValue, std::less<>> metadata_;
  std::vector<GgufFileTensor> tensors_;
  std::map<std::string, std::size_t, std::less<>> index_;
};

}  // namespace lockstep
