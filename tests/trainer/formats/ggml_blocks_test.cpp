// The blocks of GGUF files against llama.cpp's Python package: tests/golden/formats/make_ggml_blocks.py made the file.
#include "trainer/formats/ggml_blocks.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "base/half.h"
#include "base/random.h"
#include "trainer/formats/safetensors.h"

namespace lockstep {
namespace {

class GgmlBlocksTest : public testing::Test {
 protected:
  [[nodiscard]] std::vector<float> floats(const std::string& name) const {
    const SafetensorsTensor& tensor = golden_.get(name);
    std::vector<float> values(tensor.count());
    golden_.read_f32(tensor, 0, values);
    return values;
  }
  [[nodiscard]] std::vector<std::byte> bytes(const std::string& name) const {
    const SafetensorsTensor& tensor = golden_.get(name);
    std::vector<std::byte> values(tensor.count());
    golden_.read(tensor, 0, values);
    return values;
  }
  static std::vector<std::byte> packed(GgmlType type, const std::vector<float>& values) {
    std::vector<std::byte> result(size_of(type, static_cast<std::int64_t>(values.size())));
    quantize(type, values, result);
    return result;
  }
  static std::vector<float> unpacked(GgmlType type, const std::vector<std::byte>& blocks, std::size_t count) {
    std::vector<float> result(count);
    dequantize(type, blocks, result);
    return result;
  }
  // The root of the mean square of what is lost, beside the values' own.
  static double loss_of(GgmlType type, const std::vector<float>& values) {
    const std::vector<float> back = unpacked(type, packed(type, values), values.size());
    double lost = 0;
    double all = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      lost += std::pow(static_cast<double>(values[i]) - static_cast<double>(back[i]), 2);
      all += std::pow(static_cast<double>(values[i]), 2);
    }
    return std::sqrt(lost / all);
  }

  SafetensorsFile golden_{std::filesystem::path(LOCKSTEP_GOLDEN_FORMATS) / "ggml_blocks.safetensors"};
};

TEST_F(GgmlBlocksTest, AreLlamaCppsToTheByte) {
  const std::vector<float> values = floats("values");
  EXPECT_EQ(packed(GgmlType::kQ4_0, values), bytes("q4_0.bytes"));
  EXPECT_EQ(packed(GgmlType::kQ5_0, values), bytes("q5_0.bytes"));
  EXPECT_EQ(packed(GgmlType::kQ8_0, values), bytes("q8_0.bytes"));
  EXPECT_EQ(packed(GgmlType::kF16, values), bytes("f16.bytes"));
  EXPECT_EQ(packed(GgmlType::kBF16, values), bytes("bf16.bytes"));
}

TEST_F(GgmlBlocksTest, MeanWhatLlamaCppTakesThemFor) {
  for (const auto& [type, name] : {std::pair(GgmlType::kQ4_K, "q4_k"), std::pair(GgmlType::kQ6_K, "q6_k")}) {
    const std::vector<float> expected = floats(std::string(name) + ".values");
    const std::vector<float> actual = unpacked(type, bytes(std::string(name) + ".packed"), expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      ASSERT_NEAR(actual[i], expected[i], 1e-6 * std::abs(expected[i])) << name << " " << i;
    }
  }
}

// The more bits, the less is lost; and the searched scales lose less than the plain ones of as many bits.
TEST_F(GgmlBlocksTest, LoseLittle) {
  std::vector<float> values(64 * 256);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto words = philox({3, 4}, i);
    // A sum of uniform numbers, which is near enough to normal.
    double sum = 0;
    for (const std::uint32_t word : words) {
      sum += static_cast<double>(uniform_float(word)) - 0.5;
    }
    values[i] = static_cast<float>(sum);
  }
  EXPECT_EQ(loss_of(GgmlType::kF32, values), 0);
  EXPECT_LT(loss_of(GgmlType::kQ8_0, values), 0.006);
  EXPECT_LT(loss_of(GgmlType::kQ6_K, values), 0.018);
  EXPECT_LT(loss_of(GgmlType::kQ5_0, values), 0.045);
  EXPECT_LT(loss_of(GgmlType::kQ4_K, values), 0.075);
  EXPECT_LT(loss_of(GgmlType::kQ4_K, values), loss_of(GgmlType::kQ4_0, values));
  EXPECT_LT(loss_of(GgmlType::kQ6_K, values), loss_of(GgmlType::kQ5_0, values));
}

TEST_F(GgmlBlocksTest, TakeZerosAndConstants) {
  for (const GgmlType type : {GgmlType::kQ4_0, GgmlType::kQ5_0, GgmlType::kQ8_0, GgmlType::kQ4_K, GgmlType::kQ6_K}) {
    EXPECT_EQ(unpacked(type, packed(type, std::vector<float>(256, 0.0F)), 256), std::vector<float>(256, 0.0F));
    for (const float constant : {0.5F, -0.5F}) {
      for (const float value : unpacked(type, packed(type, std::vector<float>(256, constant)), 256)) {
        ASSERT_NEAR(value, constant, 0.005F) << name_of(type);
      }
    }
  }
}

TEST(HalfTest, RoundsToTheNearestAndToEven) {
  EXPECT_EQ(to_f16(1.0F), 0x3c00);
  EXPECT_EQ(to_f16(-2.0F), 0xc000);
  EXPECT_EQ(to_f16(65504.0F), 0x7bff);
  EXPECT_EQ(to_f16(65519.9F), 0x7bff);
  EXPECT_EQ(to_f16(65520.0F), 0x7c00);
  EXPECT_EQ(to_f16(0x1p-24F), 1);
  EXPECT_EQ(to_f16(0x1p-25F), 0);    // half of the smallest: to even
  EXPECT_EQ(to_f16(0x1.8p-24F), 2);  // one and a half: to even
  EXPECT_EQ(to_f16(0x1.ff8p-15F), 0x3ff);
  EXPECT_EQ(to_f16(0x1.ffcp-15F), 0x400);  // rounds up to a normal number
  EXPECT_EQ(to_f16(1.0F + 0x1p-11F), 0x3c00);
  EXPECT_EQ(to_f16(1.0F + 0x1.8p-10F), 0x3c02);
  EXPECT_TRUE(std::isnan(from_f16(to_f16(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_EQ(from_f16(to_f16(-std::numeric_limits<float>::infinity())), -std::numeric_limits<float>::infinity());
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float value = from_f16(half);
    if (!std::isnan(value)) {
      ASSERT_EQ(to_f16(value), half) << bits;
    }
  }
}

}  // namespace
}  // namespace lockstep
