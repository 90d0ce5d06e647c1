// The byte alphabet of byte-level BPE files (GPT-2's): each byte is written as one printable character, so that tokens
// can stand in text files. The bytes 21..7E, A1..AC and AE..FF are written as the code point of the same value, the
// other 68, in order, as U+0100, U+0101, ...: a space is written as U+0120.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lockstep {

[[nodiscard]] char32_t character_of_byte(std::uint8_t byte);

// The bytes in the order of their characters: the order in which Hugging Face's trainer numbers them.
[[nodiscard]] std::vector<std::uint8_t> bytes_in_character_order();

// The token as it stands in a file: one character for each byte.
[[nodiscard]] std::string to_characters(std::string_view bytes);

// The bytes that a token in a file stands for; nothing when a character is not of the alphabet.
[[nodiscard]] std::optional<std::string> from_characters(std::string_view characters);

}  // namespace lockstep
