#include "data/text/byte_alphabet.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "data/text/unicode.h"

namespace lockstep {
namespace {

constexpr char32_t kLastCharacter = 0x143;

constexpr bool stands_for_itself(unsigned byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr std::array<char32_t, 256> make_characters() {
  std::array<char32_t, 256> characters{};
  char32_t next = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte) {
    characters[byte] = stands_for_itself(byte) ? byte : next++;
  }
  return characters;
}

constexpr std::array<char32_t, 256> kCharacters = make_characters();

constexpr std::array<std::int16_t, kLastCharacter + 1> make_bytes() {
  std::array<std::int16_t, kLastCharacter + 1> bytes{};
  bytes.fill(-1);
  for (unsigned byte = 0; byte < 256; ++byte) {
    bytes[kCharacters[byte]] = static_cast<std::int16_t>(byte);
  }
  return bytes;
}

constexpr std::array<std::int16_t, kLastCharacter + 1> kBytes = make_bytes();

}  // namespace

char32_t character_of_byte(std::uint8_t byte) { return kCharacters[byte]; }

std::vector<std::uint8_t> bytes_in_character_order() {
  std::vector<std::uint8_t> bytes(256);
  std::iota(bytes.begin(), bytes.end(), std::uint8_t{0});
  std::sort(bytes.begin(), bytes.end(), [](std::uint8_t a, std::uint8_t b) { return kCharacters[a] < kCharacters[b]; });
  return bytes;
}

std::string to_characters(std::string_view bytes) {
  std::string characters;
  characters.reserve(bytes.size());
  for (const char byte : bytes) {
    append_utf8(characters, kCharacters[static_cast<unsigned char>(byte)]);
  }
  return characters;
}

std::optional<std::string> from_characters(std::string_view characters) {
  std::string bytes;
  bytes.reserve(characters.size());
  for (std::size_t at = 0; at < characters.size();) {
    const CodePoint c = decode_utf8(characters, at);
    if (c.length == 0 || c.value > kLastCharacter || kBytes[c.value] < 0) {
      return std::nullopt;
    }
    bytes.push_back(static_cast<char>(kBytes[c.value]));
    at += c.length;
  }
  return bytes;
}

}  // namespace lockstep
