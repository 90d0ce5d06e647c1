#include "comm/server/protocol.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstring>
#include <string_view>

#include "base/hash.h"
#include "comm/server/payload.h"

namespace lockstep::server {
namespace {

static_assert(std::endian::native == std::endian::little, "frames are little-endian, and written as they lie");

constexpr std::array<char, 4> kMagic = {'L', 'S', 'P', 'S'};
constexpr std::uint8_t kVersion = 3;
constexpr std::size_t kMaxNameBytes = 256;
constexpr std::size_t kMaxMessageBytes = 2048;

constexpr std::uint8_t code_of(DType dtype) { return dtype == DType::kF32 ? 1 : dtype == DType::kF64 ? 2 : 0; }
constexpr std::array<DType, 3> kDTypes = {DType::kU8, DType::kF32, DType::kF64};

constexpr std::array<std::string_view, 3> kModeNames = {"sync", "bounded", "async"};

constexpr std::array<ErrorCode, 5> kErrors = {ErrorCode::kUsage, ErrorCode::kCorrupt, ErrorCode::kPeerLost,
                                              ErrorCode::kTimeout, ErrorCode::kDiverged};

template <typename... Args>
void expect(bool condition, fmt::format_string<Args...> format, Args&&... args) {
  if (!condition) {
    fail(ErrorCode::kCorrupt, "server: a frame {}", fmt::format(format, std::forward<Args>(args)...));
  }
}

// Another process's text, fit for a line of a log.
std::string printable(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20; }, '?');
  return text;
}

void check_data(const FrameHeader& header) {
  expect(header.begin <= header.end && header.end <= header.count && header.count <= kMaxElements,
         "with elements [{}, {}) of {}", header.begin, header.end, header.count);
  const bool is_sum = header.type == FrameType::kPush || header.type == FrameType::kSum;
  const bool is_wire_of_type = header.wire == Wire::kAsIs || header.wire == Wire::kBf16 ||
                               (header.wire == Wire::kInt8 && header.type == FrameType::kPush) ||
                               (header.wire == Wire::kInMemory && is_sum);
  expect(is_wire_of_type && (!rounds(header.wire) || header.dtype == DType::kF32),
         "of type {} with elements of type {} that travel as {}", static_cast<int>(header.type), name_of(header.dtype),
         static_cast<int>(header.wire));
  // No product overflows: end - begin is at most 2^48.
  const std::uint64_t elements = header.end - header.begin;
  std::uint64_t expected = elements * size_of(header.dtype);
  if (rounds(header.wire)) {
    expected = wire_bytes(header.wire, elements);
  } else if (header.wire == Wire::kInMemory) {
    expected = header.type == FrameType::kPush ? kPlaceBytes : 0;
  }
  expect(expected == header.payload_bytes && elements * size_of(header.dtype) <= kMaxPayloadBytes,
         "of {} bytes for {} elements of type {}", header.payload_bytes, elements, name_of(header.dtype));
  expect(elements > 0, "of data without any");
}

void check_fields(const FrameHeader& header) {
  const bool sums =
      header.type == FrameType::kPush || header.type == FrameType::kSum || header.type == FrameType::kValues;
  const bool has_data = sums || header.type == FrameType::kGive;
  const bool is_in_call = has_data || header.type == FrameType::kTake || header.type == FrameType::kWho;
  const int type = static_cast<int>(header.type);
  expect(sums == (header.dtype != DType::kU8), "of type {} with elements of type {}", type, name_of(header.dtype));
  expect(is_in_call == (header.call != 0), "of type {} with call {}", type, header.call);
  if (has_data) {
    check_data(header);
  } else {
    expect(header.count == 0 && header.begin == 0 && header.end == 0, "of type {} with a range", type);
    expect(header.wire == Wire::kAsIs, "of type {} whose elements travel as {}", type, static_cast<int>(header.wire));
    const std::uint32_t most = header.type == FrameType::kOpen ? kMaxPayloadBytes : kMaxTextPayloadBytes;
    expect(header.payload_bytes <= most, "of type {} with {} bytes, expected at most {}", type, header.payload_bytes,
           most);
  }
  expect(header.type != FrameType::kValues || (header.dtype == DType::kF32 && header.call <= kMaxStoreArray),
         "with values of type {} for array {}", name_of(header.dtype), header.call);
  const bool is_empty =
      header.type == FrameType::kTake || header.type == FrameType::kBye || header.type == FrameType::kAlive;
  expect(!is_empty || header.payload_bytes == 0, "of type {} with {} bytes, expected none", type, header.payload_bytes);
  expect(header.payload_bytes > 0 || header.payload_hash == 0, "without a payload but with a hash of it");
  if (header.type == FrameType::kPush) {
    expect(header.wanted_begin >= header.begin && header.wanted_begin <= header.wanted_end &&
               header.wanted_end <= header.end,
           "that wants elements [{}, {}) of [{}, {})", header.wanted_begin, header.wanted_end, header.begin,
           header.end);
  } else {
    expect(header.wanted_begin == 0 && header.wanted_end == 0, "of type {} that wants something", type);
  }
  const bool may_suspect_nobody = header.type == FrameType::kWho && header.rank == kNoRank;
  expect(header.rank < kMaxWorkers || may_suspect_nobody, "of rank {}, expected one below {}", header.rank,
         kMaxWorkers);
}

}  // namespace

std::array<std::byte, kHeaderBytes> encode(const FrameHeader& header) {
  std::array<std::byte, kHeaderBytes> bytes;
  Writer writer(bytes);
  writer.put(kMagic);
  writer.put(kVersion);
  writer.put(header.type);
  writer.put(code_of(header.dtype));
  writer.put(header.wire);
  writer.put(header.sequence);
  writer.put(header.call);
  writer.put(header.rank);
  writer.put(header.payload_bytes);
  writer.put(header.count);
  writer.put(header.begin);
  writer.put(header.end);
  writer.put(header.wanted_begin);
  writer.put(header.wanted_end);
  writer.put(header.payload_hash);
  return bytes;
}

FrameHeader decode(std::span<const std::byte, kHeaderBytes> bytes) {
  Reader reader(bytes, "a frame");
  expect(reader.get<std::array<char, 4>>() == kMagic, "without the magic number");
  const auto version = reader.get<std::uint8_t>();
  expect(version == kVersion, "of version {}, expected {}", version, kVersion);
  const auto type = reader.get<std::uint8_t>();
  expect(type >= 1 && type <= static_cast<std::uint8_t>(kLastFrameType), "of type {}, expected 1 to {}", type,
         static_cast<int>(kLastFrameType));
  const auto dtype = reader.get<std::uint8_t>();
  expect(dtype < kDTypes.size(), "with elements of type {}, expected 0 to {}", dtype, kDTypes.size() - 1);
  const auto wire = reader.get<std::uint8_t>();
  expect(wire <= static_cast<std::uint8_t>(Wire::kInMemory), "with elements that travel as {}, expected 0 to {}", wire,
         static_cast<int>(Wire::kInMemory));
  FrameHeader header;
  header.type = static_cast<FrameType>(type);
  header.dtype = kDTypes[dtype];
  header.wire = static_cast<Wire>(wire);
  header.sequence = reader.get<std::uint64_t>();
  header.call = reader.get<std::uint64_t>();
  header.rank = reader.get<std::uint32_t>();
  header.payload_bytes = reader.get<std::uint32_t>();
  header.count = reader.get<std::uint64_t>();
  header.begin = reader.get<std::uint64_t>();
  header.end = reader.get<std::uint64_t>();
  header.wanted_begin = reader.get<std::uint64_t>();
  header.wanted_end = reader.get<std::uint64_t>();
  header.payload_hash = reader.get<std::uint64_t>();
  expect(header.payload_bytes <= kMaxPayloadBytes, "of {} bytes, expected at most {}", header.payload_bytes,
         kMaxPayloadBytes);
  check_fields(header);
  return header;
}

ElementRange range_of_part(std::uint64_t count, std::size_t part, std::size_t parts) {
  return {count / parts * part + std::min<std::uint64_t>(part, count % parts),
          count / parts * (part + 1) + std::min<std::uint64_t>(part + 1, count % parts)};
}

std::string_view name_of(Mode mode) { return kModeNames[static_cast<std::size_t>(mode)]; }

std::uint64_t payload_hash_of(std::span<const std::byte> payload) { return payload.empty() ? 0 : hash_of(payload).low; }

std::vector<std::byte> encode(const Hello& hello) {
  return payload_of(std::string_view(hello.name).substr(0, kMaxNameBytes), hello.rank, hello.world, hello.part,
                    hello.parts, hello.timeout_ms, hello.silence_ms, static_cast<std::uint32_t>(hello.mode),
                    hello.group, hello.process, std::uint8_t{hello.insists});
}

Hello decode_hello(std::span<const std::byte> payload, Mode expected) {
  Reader reader(payload, "a hello");
  Hello hello;
  hello.rank = reader.get<std::uint32_t>();
  hello.world = reader.get<std::uint32_t>();
  hello.part = reader.get<std::uint32_t>();
  hello.parts = reader.get<std::uint32_t>();
  hello.timeout_ms = reader.get<std::uint32_t>();
  hello.silence_ms = reader.get<std::uint32_t>();
  const auto mode = reader.get<std::uint32_t>();
  if (mode >= kModeNames.size()) {
    fail(ErrorCode::kCorrupt, "server: a hello of mode {}, expected 0 to {}", mode, kModeNames.size() - 1);
  }
  hello.mode = static_cast<Mode>(mode);
  hello.group = reader.get<std::uint64_t>();
  hello.process = reader.get<std::uint64_t>();
  const auto insists = reader.get<std::uint8_t>();
  hello.insists = insists == 1;
  hello.name = printable(reader.rest(kMaxNameBytes));
  expect(insists <= 1 && (!hello.insists || hello.rank != kNoRank), "of a hello that insists ({}) on rank {}", insists,
         hello.rank);
  require(hello.mode == expected, "server: the worker has comm.mode {}, but the server was started with --mode {}",
          name_of(hello.mode), name_of(expected));
  return hello;
}

std::vector<std::byte> encode(const Welcome& welcome) {
  return payload_of("", welcome.rank, welcome.world, welcome.group);
}

Welcome decode_welcome(std::span<const std::byte> payload) {
  Reader reader(payload, "a welcome");
  Welcome welcome;
  welcome.rank = reader.get<std::uint32_t>();
  welcome.world = reader.get<std::uint32_t>();
  welcome.group = reader.get<std::uint64_t>();
  reader.expect_end();
  if (welcome.rank >= welcome.world || welcome.world > kMaxWorkers) {
    fail(ErrorCode::kCorrupt, "server: a welcome as rank {} of {}", welcome.rank, welcome.world);
  }
  return welcome;
}

std::vector<std::byte> encode(const Who& who) {
  return payload_of(std::string_view(who.call).substr(0, kMaxNameBytes), who.waited_ms);
}

Who decode_who(std::span<const std::byte> payload) {
  Reader reader(payload, "a question");
  Who who;
  who.waited_ms = reader.get<std::uint32_t>();
  who.call = reader.rest(kMaxNameBytes);
  return who;
}

std::vector<std::byte> encode(const SharedMemory& memory) {
  return payload_of("", memory.number, memory.bytes, memory.process, memory.descriptor, memory.secret);
}

SharedMemory decode_shared_memory(std::span<const std::byte> payload) {
  Reader reader(payload, "shared memory");
  SharedMemory memory;
  memory.number = reader.get<std::uint64_t>();
  memory.bytes = reader.get<std::uint64_t>();
  memory.process = reader.get<std::uint32_t>();
  memory.descriptor = reader.get<std::uint32_t>();
  memory.secret = reader.get<std::array<std::byte, 32>>();
  reader.expect_end();
  return memory;
}

std::vector<std::byte> encode(const MemoryUse& use) {
  return payload_of("", use.number, static_cast<std::uint32_t>(use.is_used));
}

MemoryUse decode_memory_use(std::span<const std::byte> payload) {
  Reader reader(payload, "an answer about shared memory");
  MemoryUse use;
  use.number = reader.get<std::uint64_t>();
  const auto is_used = reader.get<std::uint32_t>();
  reader.expect_end();
  expect(is_used <= 1, "that uses memory {} ({})", use.number, is_used);
  use.is_used = is_used == 1;
  return use;
}

std::vector<std::byte> encode(const Place& place) { return payload_of("", place.memory, place.offset); }

Place decode_place(std::span<const std::byte> payload) {
  Reader reader(payload, "a place in shared memory");
  Place place;
  place.memory = reader.get<std::uint64_t>();
  place.offset = reader.get<std::uint64_t>();
  reader.expect_end();
  return place;
}

std::vector<std::byte> encode(const Error& error) {
  const auto place = std::find(kErrors.begin(), kErrors.end(), error.code());
  const auto code = static_cast<std::uint8_t>((place == kErrors.end() ? kErrors.begin() + 2 : place) - kErrors.begin());
  return payload_of(std::string_view(error.what()).substr(0, kMaxMessageBytes), code);
}

Error decode_error(std::span<const std::byte> payload) {
  Reader reader(payload, "a failure");
  const auto code = reader.get<std::uint8_t>();
  if (code >= kErrors.size()) {
    fail(ErrorCode::kCorrupt, "server: a failure of kind {}, expected 0 to {}", code, kErrors.size() - 1);
  }
  return {kErrors[code], printable(reader.rest(kMaxMessageBytes))};
}

}  // namespace lockstep::server
