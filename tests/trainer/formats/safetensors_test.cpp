#include "trainer/formats/safetensors.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <limits>
#include <numeric>

#include "tests/fuzz/checkpoint_targets.h"
#include "tests/support/error_matcher.h"
#include "tests/support/temporary_folder.h"
#include "trainer/formats/hashing_file.h"

namespace lockstep {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const std::string kGolden = LOCKSTEP_GOLDEN_FORMATS;

template <typename T>
std::vector<T> values_of(const SafetensorsFile& file, const std::string& name) {
  const SafetensorsTensor& tensor = file.get(name);
  std::vector<T> values(tensor.count());
  EXPECT_EQ(size_of(tensor.type), sizeof(T));
  file.read(tensor, 0, std::as_writable_bytes(std::span(values)));
  return values;
}

std::vector<float> floats_of(const SafetensorsFile& file, const std::string& name) {
  std::vector<float> values(file.get(name).count());
  file.read_f32(file.get(name), 0, values);
  return values;
}

std::vector<std::uint32_t> bits_of(const std::vector<float>& values) {
  std::vector<std::uint32_t> bits;
  for (const float value : values) {
    bits.push_back(std::bit_cast<std::uint32_t>(value));
  }
  return bits;
}

// tests/golden/formats/make_safetensors.py wrote this file with Hugging Face's library.
TEST(Safetensors, ReadsEveryTypeThatHuggingFaceWrites) {
  const SafetensorsFile file(kGolden + "/all_types.safetensors");
  EXPECT_EQ(file.header().metadata.at("format"), "pt");
  EXPECT_EQ(file.header().metadata.at("note"), "für alle");
  EXPECT_EQ(file.header().tensors.size(), 17U);
  EXPECT_THAT(values_of<double>(file, "f64"), ElementsAre(1.5, -2.25, 1e300));
  EXPECT_THAT(values_of<float>(file, "f32"), ElementsAre(1.5F, -2.25F, 3.0e38F, 1e-45F));
  EXPECT_THAT(file.get("f32").shape, ElementsAre(2, 2));
  EXPECT_THAT(values_of<float>(file, "scalar"), ElementsAre(42.0F));
  EXPECT_TRUE(file.get("scalar").shape.empty());
  EXPECT_EQ(file.get("empty").count(), 0U);
  EXPECT_THAT(file.get("empty").shape, ElementsAre(0, 5));
  EXPECT_THAT(values_of<std::uint8_t>(file, "bool"), ElementsAre(1, 0));
  EXPECT_THAT(values_of<std::int8_t>(file, "i8"), ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_THAT(values_of<std::uint8_t>(file, "u8"), ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_THAT(values_of<std::int16_t>(file, "i16"), ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_THAT(values_of<std::uint16_t>(file, "u16"), ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_THAT(values_of<std::int32_t>(file, "i32"), ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_THAT(values_of<std::uint32_t>(file, "u32"), ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_THAT(values_of<std::int64_t>(file, "i64"), ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_THAT(values_of<std::uint64_t>(file, "u64"), ElementsAre(1, 2, 3, 4, 5, 6));
}

TEST(Safetensors, WidensHalvesExactly) {
  const SafetensorsFile file(kGolden + "/all_types.safetensors");
  EXPECT_EQ(bits_of(floats_of(file, "f16")), bits_of(floats_of(file, "f16 widened")));
  EXPECT_EQ(bits_of(floats_of(file, "bf16")), bits_of(floats_of(file, "bf16 widened")));
  EXPECT_THAT(floats_of(file, "f64"), ElementsAre(1.5F, -2.25F, std::numeric_limits<float>::infinity()));
  EXPECT_THAT(message_of_error(ErrorCode::kUnsupported, [&] { (void)floats_of(file, "i8"); }),
              HasSubstr("tensor \"i8\": I8 cannot be read as f32"));
}

TEST(Safetensors, ReadsPartsOfATensorAndNothingBeyondIt) {
  const SafetensorsFile file(kGolden + "/all_types.safetensors");
  std::vector<float> two(2);
  file.read_f32(file.get("f32"), 1, two);
  EXPECT_THAT(two, ElementsAre(-2.25F, 3.0e38F));
  EXPECT_THAT(message_of_error(ErrorCode::kUsage, [&] { file.read_f32(file.get("f32"), 3, two); }),
              HasSubstr("bytes [12, 20) were asked for, it has 16"));
  EXPECT_THAT(message_of_error(ErrorCode::kCorrupt, [&] { (void)file.get("nowhere"); }),
              HasSubstr("all_types.safetensors: tensor \"nowhere\" is missing"));
}

TEST(Safetensors, ReadsBackWhatItWrites) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "x.safetensors";
  std::vector<float> a(7);
  std::iota(a.begin(), a.end(), 1.0F);
  const std::vector<std::uint16_t> b = {7, 8, 9};
  const SafetensorsLayout layout({{"a", SafetensorsType::kF32, {7}, 0, 0},
                                  {"nothing", SafetensorsType::kF32, {0}, 0, 0},
                                  {"b \"quoted\"", SafetensorsType::kU16, {3, 1}, 0, 0}},
                                 {{"format", "pt"}});
  EXPECT_EQ(layout.head.size() % 8, 0U);
  EXPECT_EQ(layout.data_bytes, 34U);
  HashingFileWriter writer(path);
  writer.write(layout.head);
  writer.write(std::as_bytes(std::span(a)));
  writer.write(std::as_bytes(std::span(b)));
  writer.sync();
  EXPECT_EQ(writer.size(), std::filesystem::file_size(path));
  EXPECT_EQ(writer.hash(), hash_of_file(path));

  const SafetensorsFile file(path);
  EXPECT_EQ(values_of<float>(file, "a"), a);
  EXPECT_EQ(values_of<std::uint16_t>(file, "b \"quoted\""), b);
  EXPECT_EQ(file.get("nothing").count(), 0U);
  EXPECT_EQ(file.header().metadata.at("format"), "pt");
}

// Types of Hugging Face's library that nothing here computes with.
TEST(Safetensors, ListsTypesThatItCannotReadAndRefusesToReadThem) {
  struct Case {
    const char* type;
    int elements;
    int bytes;
  };
  const Case cases[] = {{"C64", 2, 16},        {"F8_E5M2", 3, 3},     {"F8_E4M3", 3, 3},
                        {"F8_E5M2FNUZ", 3, 3}, {"F8_E4M3FNUZ", 3, 3}, {"F8_E8M0", 3, 3},
                        {"F6_E2M3", 8, 6},     {"F6_E3M2", 4, 3},     {"F4", 6, 3}};
  const TemporaryFolder folder;
  for (const Case& row : cases) {
    const std::string json = fmt::format(R"({{"t":{{"dtype":"{}","shape":[{}],"data_offsets":[0,{}]}}}})", row.type,
                                         row.elements, row.bytes);
    const std::uint64_t json_bytes = json.size();
    write_file_atomic(folder / "x.safetensors", std::string(reinterpret_cast<const char*>(&json_bytes), 8) + json +
                                                    std::string(static_cast<std::size_t>(row.bytes), 'x'));
    const SafetensorsFile file(folder / "x.safetensors");
    EXPECT_EQ(name_of(file.get("t").type), row.type);
    EXPECT_EQ(file.get("t").count(), static_cast<std::uint64_t>(row.elements)) << row.type;
    EXPECT_THAT(message_of_error(ErrorCode::kUnsupported, [&] { (void)floats_of(file, "t"); }),
                HasSubstr(fmt::format("x.safetensors: tensor \"t\": {} cannot be read as f32, only F16, BF16, F32 and "
                                      "F64 can",
                                      row.type)));
    EXPECT_THAT(message_of_error(ErrorCode::kUnsupported, [&] { (void)to_dtype(file.get("t").type); }),
                HasSubstr(row.type));
  }
}

TEST(Safetensors, WriterRefusesWhatReadersWouldNotTake) {
  using Type = SafetensorsType;
  EXPECT_THAT(message_of_error(ErrorCode::kUsage,
                               [] {
                                 SafetensorsLayout({{"a", Type::kU8, {1}, 0, 0}, {"a", Type::kU8, {1}, 0, 0}}, {});
                               }),
              HasSubstr("tensor \"a\" stands twice"));
  EXPECT_THAT(message_of_error(ErrorCode::kUsage,
                               [] {
                                 SafetensorsLayout({{"a", Type::kU8, {1}, 0, 0}, {"b", Type::kF32, {1}, 0, 0}}, {});
                               }),
              HasSubstr("tensor \"b\" of F32 would begin at byte 1"));
  EXPECT_THAT(message_of_error(ErrorCode::kUsage,
                               [] {
                                 SafetensorsLayout({{"a", Type::kF4, {2}, 0, 0}}, {});
                               }),
              HasSubstr("tensor \"a\" of F4, which is not written"));
  EXPECT_THAT(message_of_error(ErrorCode::kUsage,
                               [] {
                                 SafetensorsLayout({{"a", Type::kU8, {-1}, 0, 0}}, {});
                               }),
              HasSubstr("impossible shape [-1]"));
}

TEST(HashingFileWriter, CallsBackBeforeEachPiece) {
  const TemporaryFolder folder;
  std::vector<std::size_t> pieces;
  HashingFileWriter writer(folder.path() / "x", [&](std::size_t bytes) { pieces.push_back(bytes); });
  const std::vector<std::byte> bytes(2 * HashingFileWriter::kPieceBytes + 5);
  writer.write(std::span(bytes).first(7));
  writer.write(std::span(bytes).subspan(7));
  EXPECT_EQ(writer.size(), bytes.size());
  writer.sync();
  EXPECT_THAT(pieces, ElementsAre(HashingFileWriter::kPieceBytes, HashingFileWriter::kPieceBytes, 5U));
  EXPECT_EQ(std::filesystem::file_size(folder.path() / "x"), bytes.size());
}

struct BadHeader {
  const char* name;
  std::string json;
  std::uint64_t data_bytes;
  ErrorCode code;
  std::string message;
};

class SafetensorsHeaderTest : public testing::TestWithParam<BadHeader> {};

TEST_P(SafetensorsHeaderTest, IsRefusedInOneLineThatSaysWhy) {
  const BadHeader& bad = GetParam();
  const std::string message =
      message_of_error(bad.code, [&] { (void)parse_safetensors_header(bad.json, bad.data_bytes, "x.safetensors"); });
  EXPECT_EQ(message, "x.safetensors: " + bad.message);
}

const std::string kTensor = R"({"t":{"dtype":"F32","shape":[2],"data_offsets":)";

INSTANTIATE_TEST_SUITE_P(
    Headers, SafetensorsHeaderTest,
    testing::Values(
        BadHeader{"NotAnObject", "[]", 0, ErrorCode::kCorrupt, "the header does not begin with {"},
        BadHeader{"LeadingSpace", " {}", 0, ErrorCode::kCorrupt, "the header does not begin with {"},
        BadHeader{"Empty", "", 0, ErrorCode::kCorrupt, "the header does not begin with {"},
        BadHeader{"NotJson", "{\"t\"", 0, ErrorCode::kCorrupt, "header: not valid JSON at byte 4 of 4"},
        BadHeader{
            "TwiceTheSameTensor",
            R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"t":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
            2, ErrorCode::kCorrupt, "header: key \"t\" stands twice"},
        BadHeader{"DataWithoutTensor", "{}", 4, ErrorCode::kCorrupt,
                  "the tensors end at byte 0 of the data, expected 4"},
        BadHeader{"UnknownType", R"({"t":{"dtype":"F7_E4M2","shape":[1],"data_offsets":[0,1]}})", 1,
                  ErrorCode::kUnsupported, "tensor \"t\": dtype \"F7_E4M2\" is not supported"},
        BadHeader{"TypeIsANumber", R"({"t":{"dtype":7,"shape":[1],"data_offsets":[0,1]}})", 1, ErrorCode::kCorrupt,
                  "tensor \"t\": dtype is not a string"},
        BadHeader{"MemberMissing", R"({"t":{"dtype":"U8","shape":[1]}})", 1, ErrorCode::kCorrupt,
                  "tensor \"t\": expected exactly dtype, shape and data_offsets"},
        BadHeader{"MemberTooMany", R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}})", 1,
                  ErrorCode::kCorrupt, "tensor \"t\": expected exactly dtype, shape and data_offsets"},
        BadHeader{"NegativeSize", R"({"t":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", 1, ErrorCode::kCorrupt,
                  "tensor \"t\": shape holds something that is not a size"},
        BadHeader{"FractionalSize", R"({"t":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}})", 1,
                  ErrorCode::kCorrupt, "tensor \"t\": shape holds something that is not a size"},
        BadHeader{"OneOffset", kTensor + "[0]}}", 8, ErrorCode::kCorrupt,
                  "tensor \"t\": data_offsets are not two positions"},
        BadHeader{"Backwards", kTensor + "[8,0]}}", 8, ErrorCode::kCorrupt,
                  "tensor \"t\": data_offsets [8, 0] do not lie within the 8 bytes of data"},
        BadHeader{"PastTheEnd", kTensor + "[0,8]}}", 7, ErrorCode::kCorrupt,
                  "tensor \"t\": data_offsets [0, 8] do not lie within the 7 bytes of data"},
        BadHeader{"HugeOffset", kTensor + "[0,18446744073709551615]}}", 8, ErrorCode::kCorrupt,
                  "tensor \"t\": data_offsets [0, 18446744073709551615] do not lie within the 8 bytes of data"},
        BadHeader{"ShapeAndBytesDiffer", kTensor + "[0,4]}}", 4, ErrorCode::kCorrupt,
                  "tensor \"t\": holds 4 bytes, but F32 of shape [2] does not"},
        BadHeader{"HalfAByte", R"({"t":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}})", 2, ErrorCode::kCorrupt,
                  "tensor \"t\": holds 2 bytes, but F4 of shape [3] does not"},
        BadHeader{"SixBitsAsEight", R"({"t":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,4]}})", 4,
                  ErrorCode::kCorrupt, "tensor \"t\": holds 4 bytes, but F6_E2M3 of shape [4] does not"},
        BadHeader{"ShapeOverflows", R"({"t":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}})", 0,
                  ErrorCode::kCorrupt,
                  "tensor \"t\": holds 0 bytes, but F32 of shape [4611686018427387904, 4] does not"},
        BadHeader{"BytesOverflow", R"({"t":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}})", 0,
                  ErrorCode::kCorrupt, "tensor \"t\": holds 0 bytes, but F32 of shape [4611686018427387904] does not"},
        BadHeader{"Hole", kTensor + "[4,12]}}", 12, ErrorCode::kCorrupt,
                  "tensor \"t\" begins at byte 4, expected 0: there is a hole before it"},
        BadHeader{
            "Overlap",
            R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
            6, ErrorCode::kCorrupt, "tensor \"b\" begins at byte 2, expected 4: there is an overlap"},
        BadHeader{"RestOfData", kTensor + "[0,8]}}", 9, ErrorCode::kCorrupt,
                  "the tensors end at byte 8 of the data, expected 9"},
        BadHeader{"MetadataIsAList", R"({"__metadata__":[]})", 0, ErrorCode::kCorrupt, "__metadata__ is not an object"},
        BadHeader{"MetadataHoldsANumber", R"({"__metadata__":{"a":1}})", 0, ErrorCode::kCorrupt,
                  "__metadata__ \"a\" is not a string"}),
    [](const auto& row) { return std::string(row.param.name); });

std::string message_for_file(const std::string& contents) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "x.safetensors";
  const File file = File::create(path);
  file.write(0, std::as_bytes(std::span(contents)));
  const std::string message = message_of_error(ErrorCode::kCorrupt, [&] { SafetensorsFile{path}; });
  return message.substr(message.find("x.safetensors"));
}

TEST(Safetensors, RefusesFilesThatAreTooShortForWhatTheyAnnounce) {
  EXPECT_EQ(message_for_file(""), "x.safetensors: 0 bytes are too few for a safetensors file");
  EXPECT_EQ(message_for_file("1234567"), "x.safetensors: 7 bytes are too few for a safetensors file");
  EXPECT_EQ(message_for_file(std::string("\x03\0\0\0\0\0\0\0{}", 10)),
            "x.safetensors: a header of 3 bytes is announced in a file of 10 (at most 100000000 are allowed)");
  EXPECT_THAT(message_for_file(std::string(8, '\xff') + "{}"), HasSubstr("a header of 18446744073709551615 bytes"));
}

TEST(Safetensors, HandlesWhatTheFuzzerStartsFromAndFound) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(LOCKSTEP_FUZZ_CORPUS "/safetensors")) {
    try_safetensors(read_file(entry.path()));  // aborts when something is wrong
    ++files;
  }
  EXPECT_GT(files, 0);
}

TEST(Safetensors, RefusesAFolder) {
  const TemporaryFolder folder;
  EXPECT_THAT(message_of_error(ErrorCode::kIo, [&] { SafetensorsFile{folder.path()}; }),
              HasSubstr("not a regular file"));
}

}  // namespace
}  // namespace lockstep
