// The bytes of docs/server-protocol.md. The frames of tests/golden/comm/server_frames.txt were made by
// make_server_frames.py beside it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <map>
#include <sstream>

#include "base/error.h"
#include "comm/control/token.h"
#include "comm/server/protocol.h"

namespace lockstep::server {
namespace {

using Bytes = std::array<std::byte, kHeaderBytes>;

std::string hex_of(std::span<const std::byte> bytes) {
  std::string text;
  for (const std::byte byte : bytes) {
    text += fmt::format("{:02x}", std::to_integer<int>(byte));
  }
  return text;
}

std::map<std::string, std::string> golden() {
  std::ifstream file(LOCKSTEP_GOLDEN_FRAMES);
  std::map<std::string, std::string> frames;
  for (std::string name, hex; file >> name >> hex;) {
    frames[name] = hex;
  }
  return frames;
}

// The example of the specification: elements 2 and 3 of 6, 1.0 and -2.5, pushed by rank 1 in call 7.
const std::array<float, 2> kPayload = {1.0F, -2.5F};
FrameHeader example() {
  FrameHeader header{.type = FrameType::kPush, .dtype = DType::kF32, .sequence = 3, .call = 7, .rank = 1};
  header.payload_bytes = 8;
  header.count = 6;
  header.begin = 2;
  header.end = 4;
  header.wanted_begin = 2;
  header.wanted_end = 4;
  header.payload_hash = payload_hash_of(std::as_bytes(std::span(kPayload)));
  return header;
}

bool is_refused(const Bytes& bytes) {
  try {
    (void)decode(bytes);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kCorrupt);
    return true;
  }
  return false;
}

bool is_refused(const FrameHeader& header) { return is_refused(encode(header)); }

TEST(ServerProtocolTest, WritesTheFrameOfTheSpecification) {
  const Bytes bytes = encode(example());
  std::array<std::byte, 32> key{};
  for (std::size_t i = 0; i < key.size(); ++i) {
    key[i] = static_cast<std::byte>(i);
  }
  constexpr std::string_view kRole = "worker";
  const control::Digest code =
      control::JobToken::from_hex(hex_of(key)).sign({std::as_bytes(std::span(kRole)), std::span(bytes)});
  EXPECT_EQ(hex_of(bytes) + hex_of(std::span(code).first(kCodeBytes)) + hex_of(std::as_bytes(std::span(kPayload))),
            golden()["push"]);
  EXPECT_EQ(decode(bytes), example());
}

// 4096 bytes, the third memory of process 77, behind bytes 0 to 31.
SharedMemory memory_example() {
  SharedMemory memory{.number = 3, .bytes = 4096, .process = 77, .descriptor = 9};
  for (std::size_t i = 0; i < memory.secret.size(); ++i) {
    memory.secret[i] = static_cast<std::byte>(i);
  }
  return memory;
}

TEST(ServerProtocolTest, WritesTheOtherPayloadsAsSpecified) {
  const Hello hello{.rank = 1,
                    .world = 4,
                    .part = 0,
                    .parts = 2,
                    .timeout_ms = 60'000,
                    .silence_ms = 5'000,
                    .group = 0,
                    .process = 77,
                    .insists = true,
                    .mode = Mode::kSync,
                    .name = "host a, process 7"};
  EXPECT_EQ(hex_of(encode(hello)), golden()["hello"]);
  EXPECT_EQ(hex_of(encode(Welcome{1, 4, 99})), golden()["welcome"]);
  EXPECT_EQ(hex_of(encode(Who{1500, "barrier"})), golden()["who"]);
  EXPECT_EQ(hex_of(encode(Error(ErrorCode::kPeerLost, "rank 1 is gone"))), golden()["fail"]);
  EXPECT_EQ(hex_of(encode(memory_example())), golden()["memory"]);
  EXPECT_EQ(hex_of(encode(MemoryUse{3, true})), golden()["memory_use"]);
  EXPECT_EQ(hex_of(encode(Place{3, 8})), golden()["place"]);
}

TEST(ServerProtocolTest, ReadsBackWhatItWrites) {
  const Hello hello{
      .rank = kNoRank, .world = 0, .part = 1, .parts = 2, .timeout_ms = 1, .mode = Mode::kSync, .name = "x"};
  EXPECT_EQ(decode_hello(encode(hello)), hello);
  EXPECT_EQ(decode_welcome(encode(Welcome{3, 4})), (Welcome{3, 4}));
  EXPECT_EQ(decode_who(encode(Who{12, "barrier"})), (Who{12, "barrier"}));
  EXPECT_EQ(decode_shared_memory(encode(memory_example())), memory_example());
  EXPECT_EQ(decode_memory_use(encode(MemoryUse{1, false})), (MemoryUse{1, false}));
  EXPECT_EQ(decode_place(encode(Place{1, 2})), (Place{1, 2}));
  for (const ErrorCode code :
       {ErrorCode::kUsage, ErrorCode::kCorrupt, ErrorCode::kPeerLost, ErrorCode::kTimeout, ErrorCode::kDiverged}) {
    const Error error = decode_error(encode(Error(code, "why")));
    EXPECT_EQ(error.code(), code);
    EXPECT_STREQ(error.what(), "why");
  }
  EXPECT_EQ(decode_error(encode(Error(ErrorCode::kIo, "disk"))).code(), ErrorCode::kPeerLost);
}

TEST(ServerProtocolTest, RefusesEveryTruncatedPayload) {
  const auto refuses = [](const auto& payload, std::size_t fixed_bytes, const auto& read) {
    for (std::size_t length = 0; length < fixed_bytes; ++length) {
      EXPECT_THROW((void)read(std::span(payload).first(length)), Error) << length;
    }
  };
  refuses(encode(Hello{.name = ""}), 45, [](auto bytes) { return decode_hello(bytes); });
  refuses(encode(Welcome{0, 1}), 16, [](auto bytes) { return decode_welcome(bytes); });
  refuses(encode(Who{}), 4, [](auto bytes) { return decode_who(bytes); });
  refuses(encode(SharedMemory{}), 56, [](auto bytes) { return decode_shared_memory(bytes); });
  refuses(encode(MemoryUse{}), 12, [](auto bytes) { return decode_memory_use(bytes); });
  refuses(encode(Place{}), 16, [](auto bytes) { return decode_place(bytes); });
  refuses(encode(Error(ErrorCode::kUsage, "")), 1, [](auto bytes) { return decode_error(bytes); });
}

TEST(ServerProtocolTest, RefusesPayloadsThatSayTooMuch) {
  EXPECT_THROW((void)decode_welcome(encode(Welcome{4, 4})), Error);
  EXPECT_THROW((void)decode_welcome(encode(Welcome{0, kMaxWorkers + 1})), Error);
  EXPECT_THROW((void)decode_welcome(std::vector<std::byte>(17)), Error);
  EXPECT_THROW((void)decode_hello(std::vector<std::byte>(45 + 257)), Error);
  std::vector<std::byte> insists = encode(Hello{.rank = 1, .insists = true, .name = ""});
  EXPECT_EQ(decode_hello(insists).insists, true);
  insists[44] = std::byte{2};
  EXPECT_THROW((void)decode_hello(insists), Error);
  EXPECT_THROW((void)decode_hello(encode(Hello{.insists = true, .name = ""})), Error);
  EXPECT_THROW((void)decode_who(std::vector<std::byte>(4 + 257)), Error);
  EXPECT_THROW((void)decode_shared_memory(std::vector<std::byte>(57)), Error);
  EXPECT_THROW((void)decode_memory_use(std::vector<std::byte>(13)), Error);
  EXPECT_THROW((void)decode_memory_use(std::vector<std::byte>(12, std::byte{2})), Error);
  EXPECT_THROW((void)decode_place(std::vector<std::byte>(17)), Error);
  EXPECT_THROW((void)decode_error(std::vector<std::byte>(1 + 2049)), Error);
  EXPECT_THROW((void)decode_error(std::vector<std::byte>{std::byte{5}}), Error);
}

TEST(ServerProtocolTest, RefusesConstantsThatAreNot) {
  const Bytes good = encode(example());
  for (const std::size_t at : {0U, 1U, 2U, 3U, 4U, 7U}) {
    Bytes bytes = good;
    bytes[at] ^= std::byte{1};
    EXPECT_TRUE(is_refused(bytes)) << at;
  }
  for (const int type : {0, 20, 23, 255}) {
    Bytes bytes = good;
    bytes[5] = static_cast<std::byte>(type);
    EXPECT_TRUE(is_refused(bytes)) << type;
  }
  for (const int dtype : {0, 2, 3, 255}) {
    Bytes bytes = good;
    bytes[6] = static_cast<std::byte>(dtype);
    EXPECT_TRUE(is_refused(bytes)) << dtype;
  }
}

TEST(ServerProtocolTest, RefusesFieldsThatContradictEachOther) {
  const std::vector<void (*)(FrameHeader&)> damages = {
      [](FrameHeader& header) { header.payload_bytes = kMaxPayloadBytes + 4; },
      [](FrameHeader& header) { header.payload_bytes = 12; },
      [](FrameHeader& header) { header.payload_bytes = 0; },
      [](FrameHeader& header) { header.call = 0; },
      [](FrameHeader& header) { header.rank = kMaxWorkers; },
      [](FrameHeader& header) { header.rank = kNoRank; },
      [](FrameHeader& header) { header.count = 3; },
      [](FrameHeader& header) { header.count = kMaxElements + 1; },
      [](FrameHeader& header) { header.begin = 5; },
      [](FrameHeader& header) { header.end = header.begin; },
      [](FrameHeader& header) { header.end = header.begin + (std::uint64_t{1} << 62) + 2; },
      [](FrameHeader& header) { header.wanted_begin = 1; },
      [](FrameHeader& header) { header.wanted_end = 5; },
      [](FrameHeader& header) { header.wanted_begin = 4, header.wanted_end = 3; },
      [](FrameHeader& header) { header.type = FrameType::kSum; },   // which wants nothing
      [](FrameHeader& header) { header.type = FrameType::kGive; },  // which is of bytes
      [](FrameHeader& header) { header.type = FrameType::kTake; },
      [](FrameHeader& header) { header.type = FrameType::kBye; },
  };
  EXPECT_FALSE(is_refused(example()));
  for (std::size_t i = 0; i < damages.size(); ++i) {
    FrameHeader header = example();
    damages[i](header);
    EXPECT_TRUE(is_refused(header)) << "damage " << i;
  }
}

TEST(ServerProtocolTest, KnowsDataThatLieInSharedMemory) {
  FrameHeader push = example();
  push.wire = Wire::kInMemory;
  push.payload_bytes = kPlaceBytes;
  EXPECT_EQ(decode(encode(push)), push);
  FrameHeader sum = push;
  sum.type = FrameType::kSum;
  sum.wanted_begin = sum.wanted_end = sum.payload_hash = 0;
  EXPECT_TRUE(is_refused(sum));
  sum.payload_bytes = 0;
  EXPECT_EQ(decode(encode(sum)), sum);
  push.payload_bytes = 8;
  EXPECT_TRUE(is_refused(push));
  push.payload_bytes = kPlaceBytes;
  push.end = push.begin;
  push.wanted_begin = push.wanted_end = push.begin;
  EXPECT_TRUE(is_refused(push));
  push = example();
  push.type = FrameType::kGive;
  push.dtype = DType::kU8;
  push.end = push.begin + 16;
  push.count = push.end;
  push.payload_bytes = kPlaceBytes;
  push.wanted_begin = push.wanted_end = 0;
  EXPECT_FALSE(is_refused(push));
  push.wire = Wire::kInMemory;
  EXPECT_TRUE(is_refused(push));
}

TEST(ServerProtocolTest, RefusesDataInFramesThatHaveNone) {
  EXPECT_FALSE(is_refused(FrameHeader{.type = FrameType::kBye}));
  EXPECT_FALSE(is_refused(FrameHeader{.type = FrameType::kWho, .call = 1, .rank = kNoRank}));
  EXPECT_TRUE(is_refused(FrameHeader{.type = FrameType::kBye, .payload_bytes = 1}));
  EXPECT_TRUE(is_refused(FrameHeader{.type = FrameType::kBye, .payload_hash = 1}));
  EXPECT_TRUE(is_refused(FrameHeader{.type = FrameType::kBye, .call = 1}));
  EXPECT_TRUE(is_refused(FrameHeader{.type = FrameType::kTake, .call = 1, .payload_bytes = 1}));
  EXPECT_TRUE(is_refused(FrameHeader{.type = FrameType::kTake, .call = 1, .count = 1}));
  EXPECT_TRUE(is_refused(FrameHeader{.type = FrameType::kHello, .payload_bytes = kMaxTextPayloadBytes + 1}));
  EXPECT_TRUE(is_refused(FrameHeader{.type = FrameType::kFail, .rank = kNoRank}));
}

}  // namespace
}  // namespace lockstep::server
