// The bytes of docs/server-protocol.md where servers hold the weights. tests/golden/comm/make_server_frames.py made
// those that are compared here.
#include "comm/server/store_protocol.h"

#include <gtest/gtest.h>

#include <array>
#include <fstream>
#include <map>
#include <string>

#include "base/error.h"

namespace lockstep::server {
namespace {

std::string hex_of(std::span<const std::byte> bytes) {
  std::string text;
  for (const std::byte byte : bytes) {
    text += fmt::format("{:02x}", std::to_integer<int>(byte));
  }
  return text;
}

std::string golden(const std::string& wanted) {
  std::ifstream file(LOCKSTEP_GOLDEN_FRAMES);
  for (std::string name, hex; file >> name >> hex;) {
    if (name == wanted) {
      return hex;
    }
  }
  return "nothing";
}

const Open kOpen{.id = 7,
                 .elements = 1000,
                 .steps = 200,
                 .max_staleness = 4,
                 .leads = 1,
                 .has_reached_end = 0,
                 .description = "lr 1"};
const Opened kOpened{.is_initialized = 1, .is_durable = 0, .is_kept = 1, .lead = 0, .applied = 12, .completed = 6};
const Pull kPull{.completed = 6, .arrays = 1, .when = Pull::When::kStep};
const Pulled kPulled{.version = 13,
                     .ending = Ending::kNone,
                     .lead = 0,
                     .arrays = 1,
                     .pushes = 13,
                     .stale_sum = 9,
                     .stale_max = 2,
                     .missing = 0};

template <typename Value, typename Decode>
void expect_round_trip(const Value& value, const std::string& name, std::size_t fixed_bytes, const Decode& decode) {
  const std::vector<std::byte> payload = encode(value);
  EXPECT_EQ(hex_of(payload), golden(name));
  EXPECT_EQ(decode(payload), value);
  for (std::size_t length = 0; length < fixed_bytes; ++length) {
    EXPECT_THROW((void)decode(std::span(payload).first(length)), Error) << name << " " << length;
  }
}

TEST(StoreProtocolTest, WritesAndReadsThePayloadsAsSpecifiedAndRefusesTheirBeginnings) {
  expect_round_trip(kOpen, "open", 36, decode_open);
  expect_round_trip(kOpened, "opened", 32, decode_opened);
  expect_round_trip(Start{6}, "start", 8, decode_start);
  expect_round_trip(kPull, "pull", 16, decode_pull);
  expect_round_trip(Wish{Ending::kStopped}, "wish", 4, decode_wish);
  expect_round_trip(kPulled, "pulled", 52, decode_pulled);
  expect_round_trip(Gradient{6, 13, 2.0F}, "gradient", 20, decode_gradient);
  expect_round_trip(Applied{6, 1}, "applied", 16, decode_applied);
  expect_round_trip(Waiting{1, 2}, "waiting", 12, decode_waiting);
}

TEST(StoreProtocolTest, WritesValuesAsSpecified) {
  const std::array<float, 2> values = {1.0F, -2.5F};
  FrameHeader header{.type = FrameType::kValues, .dtype = DType::kF32, .sequence = 4, .call = 1};
  header.payload_bytes = 8;
  header.count = 6;
  header.begin = 2;
  header.end = 4;
  header.payload_hash = payload_hash_of(std::as_bytes(std::span(values)));
  const std::array<std::byte, kHeaderBytes> bytes = encode(header);
  EXPECT_EQ(hex_of(bytes), golden("values").substr(0, 2 * kHeaderBytes));
  EXPECT_EQ(decode(bytes), header);
}

TEST(StoreProtocolTest, RefusesHeadersThatContradictThemselves) {
  FrameHeader good{.type = FrameType::kValues, .dtype = DType::kF32, .call = 1, .payload_bytes = 8};
  good.count = 6;
  good.end = 2;
  EXPECT_NO_THROW((void)decode(encode(good)));
  const std::vector<void (*)(FrameHeader&)> damages = {
      [](FrameHeader& header) { header.call = 0; },
      [](FrameHeader& header) { header.call = kMaxStoreArray + 1; },
      [](FrameHeader& header) { header.dtype = DType::kF64, header.payload_bytes = 16; },
      [](FrameHeader& header) { header.dtype = DType::kU8, header.payload_bytes = 2; },
      [](FrameHeader& header) { header.wanted_end = 1; },
      [](FrameHeader& header) { header.payload_bytes = 0, header.end = 0; },
      [](FrameHeader& header) { header.type = FrameType::kPull; },
  };
  for (std::size_t i = 0; i < damages.size(); ++i) {
    FrameHeader header = good;
    damages[i](header);
    EXPECT_THROW((void)decode(encode(header)), Error) << "damage " << i;
  }
  FrameHeader open{.type = FrameType::kOpen, .payload_bytes = kMaxPayloadBytes};
  EXPECT_NO_THROW((void)decode(encode(open)));
  FrameHeader pull{.type = FrameType::kPull, .payload_bytes = kMaxTextPayloadBytes + 1};
  EXPECT_THROW((void)decode(encode(pull)), Error);
}

TEST(StoreProtocolTest, RefusesNumbersThatMeanNothing) {
  const auto refuses = [](std::vector<std::byte> payload, std::size_t at, const auto& decode) {
    payload[at] = std::byte{7};
    EXPECT_THROW((void)decode(payload), Error) << at;
  };
  refuses(encode(kPull), 8, decode_pull);   // arrays
  refuses(encode(kPull), 12, decode_pull);  // when
  refuses(encode(Wish{}), 0, decode_wish);
  refuses(encode(kPulled), 8, decode_pulled);   // ending
  refuses(encode(kPulled), 16, decode_pulled);  // arrays
  refuses(encode(kOpen), 28, decode_open);
  refuses(encode(kOpen), 32, decode_open);     // leads
  refuses(encode(kOpen), 8 + 7, decode_open);  // elements beyond 2^48
  EXPECT_THROW((void)decode_gradient(encode(Gradient{0, 0, std::nanf("")})), Error);
  std::vector<std::byte> longer = encode(Applied{});
  longer.push_back({});
  EXPECT_THROW((void)decode_applied(longer), Error);
}

TEST(StoreProtocolTest, ModesThatDifferAreNamed) {
  Hello hello{.timeout_ms = 1, .mode = Mode::kAsync, .name = ""};
  EXPECT_EQ(decode_hello(encode(hello), Mode::kAsync), hello);
  try {
    (void)decode_hello(encode(hello));
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUsage);
    EXPECT_STREQ(error.what(), "server: the worker has comm.mode async, but the server was started with --mode sync");
  }
}

TEST(StoreProtocolTest, PartsCoverEverythingOnce) {
  for (const std::uint64_t count : {0U, 1U, 7U, 16U, 1000U}) {
    std::uint64_t at = 0;
    for (std::size_t part = 0; part < 3; ++part) {
      const ElementRange range = range_of_part(count, part, 3);
      EXPECT_EQ(range.begin, at);
      at = range.end;
    }
    EXPECT_EQ(at, count);
  }
}

}  // namespace
}  // namespace lockstep::server
