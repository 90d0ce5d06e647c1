// Writing GGUF files, version 3: keys and values, what tensors there are, and the tensors.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/file.h"
#include "trainer/formats/ggml_blocks.h"

namespace lockstep {

class GgufMetadata {
 public:
  void add(std::string_view key, std::string_view text);
  void add(std::string_view key, const char* text) { add(key, std::string_view(text)); }
  void add(std::string_view key, std::uint32_t number);
  void add(std::string_view key, float number);
  void add(std::string_view key, bool flag);
  void add(std::string_view key, const std::vector<std::string>& texts);
  void add(std::string_view key, const std::vector<std::int32_t>& numbers);
  void add(std::string_view key, const std::vector<float>& numbers);

  [[nodiscard]] std::uint64_t count() const { return count_; }
  [[nodiscard]] const std::string& bytes() const { return bytes_; }

 private:
  std::uint64_t count_ = 0;
  std::string bytes_;
};

struct GgufTensor {
  std::string name;                 // at most 64 bytes
  std::vector<std::int64_t> shape;  // row-major: [rows, columns] or [columns]
  GgmlType type = GgmlType::kF32;

  [[nodiscard]] std::int64_t values() const;
};

// Under another name until finish(), so that nobody takes a half-written file for a model; without that nothing is
// left.
class GgufWriter {
 public:
  // Writes all but the tensors. Throws Error(kUsage) for a name that is too long or a row that is not made of whole
  // blocks, Error(kIo, kNoSpace), as every function here.
  GgufWriter(std::filesystem::path path, const GgufMetadata& metadata, std::vector<GgufTensor> tensors);
  // The values of a tensor, all of them.
  void write(std::size_t tensor, std::span<const float> values);
  // Returns when the file is on the disk under its name.
  void finish();

  [[nodiscard]] std::uint64_t size_bytes() const { return size_; }

 private:
  // Removed again unless it was renamed.
  struct Partial {
    explicit Partial(std::filesystem::path where) : path(std::move(where)) {}
    ~Partial();
    Partial(const Partial&) = delete;
    Partial& operator=(const Partial&) = delete;

    std::filesystem::path path;
    bool is_renamed = false;
  };

  std::filesystem::path path_;
  Partial partial_;
  std::vector<GgufTensor> tensors_;
  std::vector<std::uint64_t> offsets_;  // in the file
  std::uint64_t size_ = 0;
  File file_;
  std::vector<std::byte> bytes_;
};

}  // namespace lockstep
