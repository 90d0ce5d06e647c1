// Writes a SentencePiece model, right or wrong, field by field.
#pragma once

#include <bit>
#include <cstdint>
#include <string>
#include <string_view>

namespace lockstep {

class ProtoBuilder {
 public:
  ProtoBuilder& integer(std::uint32_t field, std::uint64_t value) { return varint(field << 3).varint(value); }
  ProtoBuilder& real(std::uint32_t field, float value) {
    varint(field << 3 | 5);
    const auto bits = std::bit_cast<std::uint32_t>(value);
    for (unsigned shift = 0; shift < 32; shift += 8) {
      bytes_.push_back(static_cast<char>(static_cast<unsigned char>(bits >> shift)));
    }
    return *this;
  }
  // A string or a message.
  ProtoBuilder& text(std::uint32_t field, std::string_view value) {
    varint(field << 3 | 2).varint(value.size());
    bytes_ += value;
    return *this;
  }
  // ModelProto.pieces.
  ProtoBuilder& piece(std::string_view what, float score, std::uint64_t type) {
    return text(1, ProtoBuilder().text(1, what).real(2, score).integer(3, type).bytes());
  }
  ProtoBuilder& varint(std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) {
      bytes_.push_back(static_cast<char>(static_cast<unsigned char>(value | 0x80)));
    }
    bytes_.push_back(static_cast<char>(value));
    return *this;
  }
  [[nodiscard]] const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

}  // namespace lockstep
