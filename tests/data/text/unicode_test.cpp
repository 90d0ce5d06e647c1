#include "data/text/unicode.h"

#include <gtest/gtest.h>

#include <set>

#include "data/text/byte_alphabet.h"

namespace lockstep {
namespace {

TEST(Utf8, DecodesWhatItEncodes) {
  for (const char32_t c :
       {0x0U, 0x7FU, 0x80U, 0x7FFU, 0x800U, 0xD7FFU, 0xE000U, 0xFFFEU, 0xFFFFU, 0x10000U, 0x10FFFFU}) {
    std::string text = "x";
    append_utf8(text, c);
    EXPECT_EQ(decode_utf8(text, 1).value, c);
    EXPECT_EQ(decode_utf8(text, 1).length, text.size() - 1);
  }
}

TEST(Utf8, RefusesOverlongFormsSurrogatesAndWhatIsCutOff) {
  for (const std::string_view bytes :
       {"", "\x80", "\xC0\x80", "\xC1\xBF", "\xC3", "\xC3(", "\xE0\x9F\xBF", "\xE4\xBD", "\xED\xA0\x80", "\xED\xBF\xBF",
        "\xF0\x8F\xBF\xBF", "\xF0\x9F\x9A", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF"}) {
    EXPECT_EQ(decode_utf8(bytes, 0).length, 0U) << testing::PrintToString(bytes);
  }
}

TEST(Utf8, FindsTheEndOfTheValidPart) {
  EXPECT_EQ(valid_utf8_end("", 0), 0U);
  EXPECT_EQ(valid_utf8_end("0123456789abcdef\xFFxyz", 0), 16U);
  EXPECT_EQ(valid_utf8_end("0123456\u00E9\u6211\xE6\x88", 0), 12U);
  EXPECT_EQ(valid_utf8_end("\xFFxyz", 1), 4U);
}

TEST(Utf8, SplitsATextIntoValidAndInvalidStretches) {
  std::vector<std::string> parts;
  split_by_validity(
      "ab\xFF\xFE\xC3\u00E9\xE6\x88z", [&](std::string_view valid) { parts.push_back("+" + std::string(valid)); },
      [&](std::string_view invalid) { parts.push_back("-" + std::string(invalid)); });
  EXPECT_EQ(parts, (std::vector<std::string>{"+ab", "-\xFF\xFE\xC3", "+\u00E9", "-\xE6\x88", "+z"}));
}

TEST(CharacterClass, IsThatOfUnicode) {
  EXPECT_EQ(class_of('a'), CharClass::kLetter);
  EXPECT_EQ(class_of(0x6211), CharClass::kLetter);
  EXPECT_EQ(class_of(0x02B0), CharClass::kLetter);  // modifier letter
  EXPECT_EQ(class_of('7'), CharClass::kNumber);
  EXPECT_EQ(class_of(0x00BD), CharClass::kNumber);
  EXPECT_EQ(class_of(0x2167), CharClass::kNumber);
  EXPECT_EQ(class_of(0x3000), CharClass::kSpace);
  EXPECT_EQ(class_of(0x0085), CharClass::kSpace);
  EXPECT_EQ(class_of(0x180E), CharClass::kOther);  // once white space
  EXPECT_EQ(class_of(0x200B), CharClass::kOther);
  EXPECT_EQ(class_of(0x001C), CharClass::kOther);
  EXPECT_EQ(class_of(0x0301), CharClass::kOther);
}

TEST(NormalForm, ComposesAndReorders) {
  EXPECT_EQ(to_nfc("plain \u00E9"), "plain \u00E9");
  EXPECT_EQ(to_nfc("e\u0301"), "\u00E9");
  EXPECT_EQ(to_nfc("a\u0301\u0323"), "\u1EA1\u0301");
  EXPECT_EQ(to_nfc("\u212B \uFB01"), "\u00C5 \uFB01");
  EXPECT_EQ(to_nfc("\u1100\u1161\u11A8"), "\uAC01");
  EXPECT_EQ(to_nfc(std::string_view("\0e\u0301\0", 5)), std::string_view("\0\u00E9\0", 4));
}

TEST(InQuotes, KeepsAMessageOnOneShortLine) {
  EXPECT_EQ(in_quotes("plain \u00E9"), "\"plain \u00E9\"");
  EXPECT_EQ(in_quotes("a\nb\xFF"), "\"a\\x0Ab\\xFF\"");
  EXPECT_EQ(in_quotes(std::string(100, 'x')), "\"" + std::string(60, 'x') + "\"...");
}

TEST(ByteAlphabet, WritesEachByteAsACharacterOfItsOwn) {
  std::set<char32_t> seen;
  for (unsigned byte = 0; byte < 256; ++byte) {
    seen.insert(character_of_byte(static_cast<std::uint8_t>(byte)));
    const std::string bytes(1, static_cast<char>(byte));
    EXPECT_EQ(from_characters(to_characters(bytes)), bytes);
  }
  EXPECT_EQ(seen.size(), 256U);
  EXPECT_EQ(to_characters(" a\n"), "\u0120a\u010A");
  EXPECT_EQ(character_of_byte(0xAD), 0x143U);
  EXPECT_EQ(bytes_in_character_order().front(), '!');
  EXPECT_EQ(bytes_in_character_order().back(), 0xAD);
}

TEST(ByteAlphabet, RefusesOtherCharacters) {
  EXPECT_EQ(from_characters("a b"), std::nullopt);
  EXPECT_EQ(from_characters("\u6211"), std::nullopt);
  EXPECT_EQ(from_characters("\u0144"), std::nullopt);
  EXPECT_EQ(from_characters("\xC3"), std::nullopt);
}

}  // namespace
}  // namespace lockstep
