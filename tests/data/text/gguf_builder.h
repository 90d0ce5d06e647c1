// Writes a GGUF file, right or wrong, byte by byte: keys first, then tensors, then what tensors hold.
#pragma once

#include <bit>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/text/gguf_reader.h"

namespace lockstep {

class GgufBuilder {
 public:
  explicit GgufBuilder(std::uint32_t version = 3) : version_(version) {}

  GgufBuilder& key(std::string_view name, GgufType type) {
    ++keys_;
    string(name);
    return u32(static_cast<std::uint32_t>(type));
  }
  GgufBuilder& string_key(std::string_view name, std::string_view value) {
    return key(name, GgufType::kString).string(value);
  }
  GgufBuilder& u32_key(std::string_view name, std::uint32_t value) { return key(name, GgufType::kU32).u32(value); }
  GgufBuilder& strings_key(std::string_view name, const std::vector<std::string>& values) {
    array_key(name, GgufType::kString, values.size());
    for (const std::string& value : values) {
      string(value);
    }
    return *this;
  }
  GgufBuilder& i32s_key(std::string_view name, const std::vector<std::uint32_t>& values) {
    array_key(name, GgufType::kI32, values.size());
    for (const std::uint32_t value : values) {
      u32(value);
    }
    return *this;
  }
  GgufBuilder& f32s_key(std::string_view name, const std::vector<float>& values) {
    array_key(name, GgufType::kF32, values.size());
    for (const float value : values) {
      u32(std::bit_cast<std::uint32_t>(value));
    }
    return *this;
  }
  GgufBuilder& array_key(std::string_view name, GgufType element, std::uint64_t count) {
    return key(name, GgufType::kArray).u32(static_cast<std::uint32_t>(element)).u64(count);
  }

  // `sizes`: the fastest first.
  GgufBuilder& tensor(std::string_view name, const std::vector<std::uint64_t>& sizes, std::uint32_t type,
                      std::uint64_t offset) {
    ++tensors_;
    string(name).u32(static_cast<std::uint32_t>(sizes.size()));
    for (const std::uint64_t size : sizes) {
      u64(size);
    }
    return u32(type).u64(offset);
  }
  // So many bytes of 0 behind the border that the tensors' offsets count from.
  GgufBuilder& data(std::size_t size, std::size_t alignment = 32) {
    const std::size_t described = bytes().size();
    body_.append((described + alignment - 1) / alignment * alignment - described + size, '\0');
    return *this;
  }

  GgufBuilder& string(std::string_view text) {
    u64(text.size());
    body_ += text;
    return *this;
  }
  GgufBuilder& u8(std::uint8_t value) { return integer(value, 1); }
  GgufBuilder& u32(std::uint32_t value) { return integer(value, 4); }
  GgufBuilder& u64(std::uint64_t value) { return integer(value, 8); }

  // The file: header, then what was put.
  [[nodiscard]] std::string bytes() const {
    GgufBuilder header;
    header.body_ = "GGUF";
    header.u32(version_).u64(tensors_).u64(keys_);
    return header.body_ + body_;
  }

 private:
  GgufBuilder& integer(std::uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) {
      body_.push_back(static_cast<char>(static_cast<unsigned char>(value >> (8 * i))));
    }
    return *this;
  }

  std::uint32_t version_;
  std::uint64_t tensors_ = 0;
  std::uint64_t keys_ = 0;
  std::string body_;
};

}  // namespace lockstep
