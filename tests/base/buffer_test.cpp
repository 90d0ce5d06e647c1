#include "base/buffer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <utility>

namespace lockstep {
namespace {

class BufferTest : public testing::TestWithParam<std::size_t> {};

TEST_P(BufferTest, AllocatesZeroedAlignedMemory) {
  const Buffer buffer = Buffer::allocate(GetParam());
  ASSERT_EQ(buffer.size_bytes(), GetParam());
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % 64, 0U);
  const auto bytes = buffer.as<std::uint8_t>(GetParam());
  EXPECT_TRUE(std::all_of(bytes.begin(), bytes.end(), [](std::uint8_t byte) { return byte == 0; }));
  std::fill(bytes.begin(), bytes.end(), std::uint8_t{255});
}

INSTANTIATE_TEST_SUITE_P(Sizes, BufferTest, testing::Values(0, 1, 63, 4096, (4U << 20) - 1, 4U << 20, 9U << 20));

TEST(BufferTest, AlignsLargeMemoryToHugePages) {
  const Buffer buffer = Buffer::allocate(std::size_t{4} << 20);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % (std::size_t{2} << 20), 0U);
}

TEST(BufferTest, ReleasesForeignMemoryOnceAfterMoves) {
  int releases = 0;
  int value = 0;
  {
    Buffer first(&value, sizeof(value), [&](void* data) {
      EXPECT_EQ(data, &value);
      ++releases;
    });
    Buffer second = std::move(first);
    Buffer third;
    third = std::move(second);
    EXPECT_EQ(third.size_bytes(), sizeof(value));
    EXPECT_EQ(releases, 0);
  }
  EXPECT_EQ(releases, 1);
}

TEST(BufferViewTest, SlicesInElementsNotBytes) {
  std::array<float, 5> values = {0, 1, 2, 3, 4};
  const BufferView view = view_of(std::span<float>(values));
  EXPECT_EQ(view.dtype, DType::kF32);
  EXPECT_EQ(view.size_bytes(), 20U);
  const BufferView middle = view.slice(1, 3);
  EXPECT_EQ(middle.count, 3U);
  EXPECT_EQ(middle.as<float>()[0], 1.0F);
  EXPECT_EQ(middle.as<float>()[2], 3.0F);
  EXPECT_EQ(view.slice(5, 0).count, 0U);
}

}  // namespace
}  // namespace lockstep
