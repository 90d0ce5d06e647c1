#include "base/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>
#include <string>

#include "base/half.h"

namespace lockstep {
namespace {

constexpr std::array<DType, 10> kAll = {DType::kF32, DType::kF64, DType::kBF16, DType::kF16, DType::kU8,
                                        DType::kU16, DType::kU32, DType::kU64,  DType::kI32, DType::kI64};

TEST(DTypeTest, GivesEveryTypeItsSizeAndANameOfItsOwn) {
  std::set<std::string> names;
  for (const DType dtype : kAll) {
    const std::string name(name_of(dtype));
    names.insert(name);
    // The number in the name is the number of bits.
    const std::size_t bits = std::stoul(name.substr(name.find_first_of("0123456789")));
    EXPECT_EQ(size_of(dtype) * 8, bits) << name;
  }
  EXPECT_EQ(names.size(), kAll.size());
}

TEST(BFloat16Test, KeepsTheUpperHalfOfAFloat) {
  EXPECT_EQ(BFloat16(0.0F).bits, 0x0000);
  EXPECT_EQ(BFloat16(-0.0F).bits, 0x8000);
  EXPECT_EQ(BFloat16(1.0F).bits, 0x3f80);
  EXPECT_EQ(BFloat16(-2.0F).bits, 0xc000);
  EXPECT_EQ(static_cast<float>(BFloat16(3.140625F)), 3.140625F);
}

TEST(BFloat16Test, RoundsToTheNearestAndHalvesToEven) {
  EXPECT_EQ(BFloat16(1.0F + 0x1p-8F).bits, 0x3f80);             // half way: down to even
  EXPECT_EQ(BFloat16(1.0F + 0x1p-7F + 0x1p-8F).bits, 0x3f82);   // half way: up to even
  EXPECT_EQ(BFloat16(1.0F + 0x1p-8F + 0x1p-20F).bits, 0x3f81);  // above half
  EXPECT_EQ(BFloat16(1.0F + 0x1p-9F).bits, 0x3f80);             // below half
}

TEST(BFloat16Test, KeepsInfinitiesAndNan) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(static_cast<float>(BFloat16(infinity)), infinity);
  EXPECT_EQ(static_cast<float>(BFloat16(-infinity)), -infinity);
  EXPECT_EQ(static_cast<float>(BFloat16(std::numeric_limits<float>::max())), infinity);
  EXPECT_TRUE(std::isnan(static_cast<float>(BFloat16(std::bit_cast<float>(0x7f800001U)))));
  EXPECT_TRUE(std::isnan(static_cast<float>(BFloat16(std::bit_cast<float>(0xffffffffU)))));
}

// The expected bits are numpy's.
TEST(Float16Test, HasTheBitsOfAHalf) {
  EXPECT_EQ(Float16(-0.0F).bits, 0x8000);
  EXPECT_EQ(Float16(1.0F).bits, 0x3c00);
  EXPECT_EQ(Float16(-2.5F).bits, 0xc100);
  EXPECT_EQ(Float16(65504.0F).bits, 0x7bff);
  EXPECT_EQ(Float16(0x1p-14F).bits, 0x0400);
  EXPECT_EQ(Float16(0x1p-24F).bits, 0x0001);
  EXPECT_EQ(static_cast<float>(Float16(3.140625F)), 3.140625F);
  EXPECT_EQ(static_cast<float>(Float16(3 * 0x1p-24F)), 3 * 0x1p-24F);
}

TEST(Float16Test, RoundsToTheNearestAndHalvesToEven) {
  EXPECT_EQ(Float16(1.0F + 0x1p-11F).bits, 0x3c00);             // half way: down to even
  EXPECT_EQ(Float16(1.0F + 0x1p-10F + 0x1p-11F).bits, 0x3c02);  // half way: up to even
  EXPECT_EQ(Float16(1.0F + 0x1p-11F + 0x1p-20F).bits, 0x3c01);  // above half
  EXPECT_EQ(Float16(0x1p-25F).bits, 0x0000);
  EXPECT_EQ(Float16(3 * 0x1p-25F).bits, 0x0002);
  EXPECT_EQ(Float16(65519.0F).bits, 0x7bff);
  EXPECT_EQ(Float16(65520.0F).bits, 0x7c00);
}

TEST(Float16Test, KeepsInfinitiesAndNan) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(static_cast<float>(Float16(infinity)), infinity);
  EXPECT_EQ(static_cast<float>(Float16(-infinity)), -infinity);
  EXPECT_EQ(static_cast<float>(Float16(std::numeric_limits<float>::max())), infinity);
  EXPECT_TRUE(std::isnan(static_cast<float>(Float16(std::bit_cast<float>(0x7f800001U)))));
}

}  // namespace
}  // namespace lockstep
