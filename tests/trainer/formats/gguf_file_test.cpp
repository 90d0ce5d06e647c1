#include "trainer/formats/gguf_file.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <map>

#include "tests/data/text/gguf_builder.h"
#include "tests/support/error_matcher.h"
#include "tests/support/temporary_folder.h"
#include "trainer/formats/gguf_writer.h"

namespace lockstep {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::uint32_t kF32 = 0;
constexpr std::uint32_t kQ8_0 = 8;

class GgufFileTest : public testing::Test {
 protected:
  GgufFile open(const std::string& bytes) {
    write_file_atomic(path(), bytes);
    return GgufFile(path());
  }
  std::string refusal(const std::string& bytes, ErrorCode code = ErrorCode::kCorrupt) {
    return message_of_error(code, [&] { static_cast<void>(open(bytes)); });
  }
  std::string refusal(const GgufBuilder& builder, ErrorCode code = ErrorCode::kCorrupt) {
    return refusal(builder.bytes(), code);
  }
  [[nodiscard]] std::filesystem::path path() const { return folder_ / "m.gguf"; }

  TemporaryFolder folder_;
};

// Two tensors that fit: 3 x 2 of f32, and a row of q8_0.
GgufBuilder two_tensors() {
  return GgufBuilder()
      .string_key("general.architecture", "llama")
      .tensor("a", {2, 3}, kF32, 0)
      .tensor("b", {32}, kQ8_0, 32);
}

TEST_F(GgufFileTest, ReadsKeysOfEveryType) {
  GgufBuilder builder;
  builder.key("u8", GgufType::kU8).u8(200);
  builder.key("i8", GgufType::kI8).u8(200);
  builder.key("u16", GgufType::kU16).u8(0x34).u8(0x12);
  builder.key("i16", GgufType::kI16).u8(0xFE).u8(0xFF);
  builder.u32_key("u32", 4'000'000'000);
  builder.key("i32", GgufType::kI32).u32(0xFFFFFFFF);
  builder.key("f32", GgufType::kF32).u32(std::bit_cast<std::uint32_t>(1.5F));
  builder.key("bool", GgufType::kBool).u8(1);
  builder.string_key("string", "text");
  builder.strings_key("strings", {"one", "", "three"});
  builder.i32s_key("i32s", {1, 2});
  builder.key("u64", GgufType::kU64).u64(std::numeric_limits<std::uint64_t>::max());
  builder.key("i64", GgufType::kI64).u64(std::numeric_limits<std::uint64_t>::max());
  builder.key("f64", GgufType::kF64).u64(std::bit_cast<std::uint64_t>(1e300));
  for (const std::uint32_t version : {2U, 3U}) {
    std::string bytes = builder.bytes();
    bytes[4] = static_cast<char>(version);
    const GgufFile file = open(bytes);
    EXPECT_EQ(file.version(), version);
    EXPECT_EQ(file.alignment(), 32U);
    EXPECT_EQ(file.metadata().size(), 14U);
    EXPECT_EQ(file.number("u8"), 200);
    EXPECT_EQ(file.number("i8"), -56);
    EXPECT_EQ(file.number("u16"), 0x1234);
    EXPECT_EQ(file.number("i16"), -2);
    EXPECT_EQ(file.number("u32"), 4'000'000'000);
    EXPECT_EQ(file.number("i32"), -1);
    EXPECT_EQ(file.number("i64"), -1);
    EXPECT_EQ(file.real("f32"), 1.5);
    EXPECT_EQ(file.real("f64"), 1e300);
    EXPECT_EQ(file.real("u8"), 200.0);
    EXPECT_EQ(std::get<bool>(file.metadata().at("bool")), true);
    EXPECT_EQ(file.text("string"), "text");
    EXPECT_EQ(file.array("strings")->count, 3U);
    EXPECT_EQ(file.array("strings")->type, GgufType::kString);
    EXPECT_EQ(file.array("i32s")->count, 2U);
    EXPECT_FALSE(file.number("none"));
    EXPECT_FALSE(file.real("none"));
    EXPECT_FALSE(file.text("none"));
    EXPECT_FALSE(file.array("none"));
    const auto misread = [](const auto& read) { return message_of_error(ErrorCode::kUnsupported, read); };
    EXPECT_EQ(misread([&] { (void)file.number("u64"); }), path().string() + ": u64 is not an integer of 63 bits");
    EXPECT_EQ(misread([&] { (void)file.number("f32"); }), path().string() + ": f32 is not an integer of 63 bits");
    EXPECT_EQ(misread([&] { (void)file.text("u8"); }), path().string() + ": u8 is not a text");
    EXPECT_EQ(misread([&] { (void)file.array("u8"); }), path().string() + ": u8 is not an array");
  }
}

TEST_F(GgufFileTest, ReadsBackWhatTheWriterWrote) {
  const std::vector<GgufTensor> tensors = {
      {"vector", {5}, GgmlType::kF32},         {"half", {2, 3}, GgmlType::kF16},
      {"brain", {2, 3}, GgmlType::kBF16},      {"q4_0", {3, 64}, GgmlType::kQ4_0},
      {"q5_0", {3, 64}, GgmlType::kQ5_0},      {"q8_0", {2, 3, 32}, GgmlType::kQ8_0},
      {"q4_k", {2, 512}, GgmlType::kQ4_K},     {"q6_k", {2, 256}, GgmlType::kQ6_K},
      {"large", {100, 4000}, GgmlType::kQ8_0},  // more than is read at once
  };
  const auto values_of = [](const GgufTensor& tensor) {
    std::vector<float> values(static_cast<std::size_t>(tensor.values()));
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<float>(std::sin(0.1 * static_cast<double>(i)));
    }
    return values;
  };
  GgufWriter writer(path(), {}, tensors);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    writer.write(i, values_of(tensors[i]));
  }
  writer.finish();
  const GgufFile file(path());
  ASSERT_EQ(file.tensors().size(), tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const GgufFileTensor& tensor = file.tensors()[i];
    EXPECT_EQ(tensor.name, tensors[i].name);
    EXPECT_EQ(tensor.shape, tensors[i].shape);
    EXPECT_EQ(tensor.type.name, name_of(tensors[i].type));
    EXPECT_EQ(tensor.bytes, size_of(tensors[i].type, tensors[i].values()));
    EXPECT_EQ(file.find(tensor.name), &tensor);
    const std::vector<float> values = values_of(tensors[i]);
    std::vector<std::byte> bytes(tensor.bytes);
    quantize(tensors[i].type, values, bytes);
    std::vector<float> expected(values.size());
    dequantize(tensors[i].type, bytes, expected);
    std::vector<float> found(tensor.count());
    file.read(tensor, found);
    EXPECT_EQ(found, expected) << tensor.name;
  }
  EXPECT_EQ(file.find("none"), nullptr);
}

TEST_F(GgufFileTest, TakesAnAlignmentAndTensorsInAnyOrder) {
  const GgufFile file = open(GgufBuilder()
                                 .u32_key("general.alignment", 64)
                                 .tensor("second", {2}, kF32, 64)
                                 .tensor("first", {2}, kF32, 0)
                                 .data(72, 64)
                                 .bytes());
  EXPECT_EQ(file.alignment(), 64U);
  ASSERT_EQ(file.tensors().size(), 2U);
  EXPECT_EQ(file.tensors()[0].name, "first");
  EXPECT_EQ(file.tensors()[0].begin % 64, 0U);
  EXPECT_EQ(file.tensors()[1].begin, file.tensors()[0].begin + 64);
}

TEST_F(GgufFileTest, NamesACutAtEveryByte) {
  const std::string whole = GgufBuilder(two_tensors()).data(32 + 34).bytes();
  EXPECT_EQ(open(whole).tensors().size(), 2U);
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_THAT(refusal(whole.substr(0, size)), HasSubstr(path().string())) << size;
  }
  EXPECT_THAT(refusal(whole.substr(0, whole.size() - 1)), HasSubstr("tensor \"b\" takes 34 bytes from "));
}

TEST_F(GgufFileTest, RefusesWhatIsNoGgufFile) {
  EXPECT_THAT(refusal(std::string("GGML") + std::string(100, '\0')), HasSubstr("does not begin with GGUF"));
  EXPECT_THAT(refusal(GgufBuilder(1), ErrorCode::kUnsupported), HasSubstr("GGUF version 1, expected 2 or 3"));
  EXPECT_THAT(refusal(GgufBuilder(0x03000000), ErrorCode::kUnsupported), HasSubstr("(little-endian)"));
  EXPECT_TRUE(is_gguf_file(path()));
  write_file_atomic(path(), "GG");
  EXPECT_FALSE(is_gguf_file(path()));
}

TEST_F(GgufFileTest, RefusesCountsThatTheFileHasNoRoomFor) {
  const auto with = [](std::size_t at, std::uint64_t value) {
    std::string bytes = GgufBuilder(two_tensors()).data(66).bytes();
    for (std::size_t i = 0; i < 8; ++i) {
      bytes[at + i] = static_cast<char>(static_cast<unsigned char>(value >> (8 * i)));
    }
    return bytes;
  };
  constexpr std::uint64_t kMost = std::numeric_limits<std::uint64_t>::max();
  EXPECT_THAT(refusal(with(8, kMost)), HasSubstr(path().string()));  // tensors
  EXPECT_THAT(refusal(with(16, kMost)), HasSubstr("18446744073709551615 keys, expected at most 65536"));
  EXPECT_THAT(refusal(with(24, kMost)), HasSubstr("key 0 at byte "));  // the first key's length
  EXPECT_THAT(refusal(GgufBuilder().array_key("a", GgufType::kU8, kMost)),
              HasSubstr("elements, but the file has only"));
  EXPECT_THAT(refusal(GgufBuilder().array_key("a", GgufType::kArray, 0), ErrorCode::kUnsupported),
              HasSubstr("array of arrays"));
  EXPECT_THAT(refusal(GgufBuilder().key("k", static_cast<GgufType>(13)).u64(0)), HasSubstr("has the type 13"));
  EXPECT_THAT(refusal(GgufBuilder().u32_key("k", 1).u32_key("k", 1)), HasSubstr("the key \"k\" is there twice"));
}

TEST_F(GgufFileTest, RefusesTensorsThatCannotBe) {
  const auto one = [](const std::vector<std::uint64_t>& sizes, std::uint32_t type = kF32, std::uint64_t offset = 0) {
    return GgufBuilder().tensor("t", sizes, type, offset).data(128);
  };
  EXPECT_THAT(refusal(one({})), HasSubstr("tensor \"t\" has 0 dimensions, expected 1 to 4"));
  EXPECT_THAT(refusal(one({1, 1, 1, 1, 1})), HasSubstr("has 5 dimensions, expected 1 to 4"));
  EXPECT_THAT(refusal(one({4, 0})), HasSubstr("has a dimension of 0"));
  EXPECT_THAT(refusal(one({std::uint64_t{1} << 63})), HasSubstr("has a dimension of 9223372036854775808"));
  EXPECT_THAT(refusal(one({std::uint64_t{1} << 32, std::uint64_t{1} << 32})), HasSubstr("which no file can hold"));
  EXPECT_THAT(refusal(one({std::uint64_t{1} << 62})), HasSubstr("which no file can hold"));
  EXPECT_THAT(refusal(one({33}, kQ8_0)), HasSubstr("rows of 33 values, which are no whole blocks of Q8_0"));
  EXPECT_THAT(refusal(one({2}, 4), ErrorCode::kUnsupported), HasSubstr("tensor \"t\" has the type 4, which is not"));
  EXPECT_THAT(refusal(one({2}, kF32, 4)), HasSubstr("begins at the offset 4, which is no multiple of 32"));
  EXPECT_THAT(refusal(one({33})), HasSubstr("tensor \"t\" takes 132 bytes from 64 + 0 on, but the file has only 192"));
  EXPECT_THAT(refusal(one({2}, kF32, 128)), HasSubstr("takes 8 bytes from 64 + 128 on"));
  EXPECT_THAT(refusal(one({2}, kF32, ~std::uint64_t{31})), HasSubstr("takes 8 bytes from 64 + "));
  EXPECT_THAT(refusal(GgufBuilder().tensor("t\n", {33}, kF32, 0)), HasSubstr("tensor \"t\\x0a\" takes"));
}

TEST_F(GgufFileTest, RefusesTensorsThatShareTheirPlaceOrName) {
  EXPECT_THAT(refusal(GgufBuilder().tensor("a", {9}, kF32, 0).tensor("b", {1}, kF32, 32).data(64)),
              HasSubstr("the tensors \"a\" and \"b\" overlap"));
  EXPECT_THAT(refusal(GgufBuilder().tensor("a", {8}, kF32, 0).tensor("b", {8}, kF32, 0).data(64)),
              HasSubstr("overlap"));
  EXPECT_THAT(refusal(GgufBuilder().tensor("a", {8}, kF32, 0).tensor("a", {8}, kF32, 32).data(64)),
              HasSubstr("tensor \"a\" is there twice"));
}

TEST_F(GgufFileTest, RefusesAnAlignmentThatIsNone) {
  for (const std::uint32_t alignment : {0U, 24U, 1U << 21}) {
    EXPECT_THAT(refusal(GgufBuilder().u32_key("general.alignment", alignment)),
                HasSubstr(fmt::format("general.alignment is {}, expected a power of two", alignment)));
  }
}

TEST_F(GgufFileTest, ListsTypesThatItCannotRead) {
  const GgufFile file = open(GgufBuilder().tensor("t", {256}, 13, 0).data(176).bytes());
  EXPECT_EQ(file.tensors()[0].type.name, "Q5_K");
  std::vector<float> values(file.tensors()[0].count());
  EXPECT_EQ(values.size(), 256U);
  EXPECT_EQ(message_of_error(ErrorCode::kUnsupported, [&] { file.read(file.tensors()[0], values); }),
            path().string() + ": tensor \"t\" has the type Q5_K, whose values cannot be read here");
}

}  // namespace
}  // namespace lockstep
