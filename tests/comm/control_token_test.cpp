#include <gtest/gtest.h>

#include <span>
#include <string_view>

#include "base/error.h"
#include "comm/control/token.h"

namespace lockstep::control {
namespace {

std::span<const std::byte> bytes(std::string_view text) { return std::as_bytes(std::span(text)); }

std::string hex(const Digest& digest) {
  std::string text;
  for (const std::byte byte : digest) {
    text += fmt::format("{:02x}", std::to_integer<int>(byte));
  }
  return text;
}

// RFC 4231, test case 2, whose key "Jefe" is filled up with zeros, as HMAC does with a key shorter than a block.
TEST(JobTokenTest, SignsAsTheStandardSays) {
  const JobToken token = JobToken::from_hex("4a65666500000000000000000000000000000000000000000000000000000000");
  const std::string expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
  EXPECT_EQ(hex(token.sign({bytes("what do ya want for nothing?")})), expected);
  EXPECT_EQ(hex(token.sign({bytes("what do ya want "), bytes("for nothing?")})), expected);
}

TEST(JobTokenTest, IsWrittenAndReadBack) {
  const JobToken token = JobToken::random();
  EXPECT_EQ(JobToken::from_hex(token.hex()).hex(), token.hex());
  EXPECT_NE(JobToken::random().hex(), token.hex());
  EXPECT_NE(token.derive({bytes("session")}).hex(), token.hex());
}

TEST(JobTokenTest, RefusesWhatIsNoToken) {
  EXPECT_THROW((void)JobToken::from_hex(""), Error);
  EXPECT_THROW((void)JobToken::from_hex(std::string(63, 'a')), Error);
  EXPECT_THROW((void)JobToken::from_hex(std::string(63, 'a') + "G"), Error);
}

TEST(DigestTest, DiffersInAnyBit) {
  Digest a{};
  Digest b{};
  EXPECT_TRUE(equal(a, b));
  b[31] = std::byte{1};
  EXPECT_FALSE(equal(a, b));
}

}  // namespace
}  // namespace lockstep::control
