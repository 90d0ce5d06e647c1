// The frames between workers and parameter servers, as docs/server-protocol.md specifies them: reading and writing
// their bytes. Pure functions, safe from any thread; those that read throw Error(kCorrupt) for anything that the
// specification does not allow.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/buffer.h"
#include "base/dtype.h"
#include "base/error.h"
#include "comm/server/wire.h"

namespace lockstep::server {

inline constexpr std::size_t kHeaderBytes = 80;
inline constexpr std::size_t kCodeBytes = 16;  // the authentication code behind a header
inline constexpr std::uint32_t kMaxPayloadBytes = std::uint32_t{1} << 20;
inline constexpr std::uint32_t kMaxTextPayloadBytes = 4096;  // of frames that carry no data
inline constexpr std::uint64_t kMaxElements = std::uint64_t{1} << 48;
inline constexpr std::uint32_t kMaxWorkers = 4096;
inline constexpr std::uint32_t kNoRank = 0xffffffff;
// How often one side lets the other hear from it in the time in which silence means that it is lost.
inline constexpr int kSignsInSilence = 5;

enum class FrameType : std::uint8_t {
  kHello = 1,  // worker: who I am
  kWelcome,    // server: your rank
  kPush,       // worker: my contribution to a piece of a sum, and what I want of the sum
  kSum,        // server: a finished piece of a sum, or part of it
  kTake,       // worker: I am in this call, send me what others give in it
  kGive,       // worker: bytes for all others; server: bytes of another worker
  kWho,        // worker: I have waited too long in this call
  kFail,       // both: the job is over, because
  kBye,        // both: the orderly end
  kAlive,      // both: I am here, and have nothing to say
  kRegroup,    // both: this group is over, because; the job goes on with those who come (again)
  // Where the servers hold the weights (comm/server/store_protocol.h).
  kOpen,      // worker: what is to be trained, and how
  kOpened,    // server: how far that is
  kStart,     // worker: the state to begin with follows
  kPull,      // worker: I want the weights
  kPulled,    // server: here they are
  kGradient,  // worker: my gradient of a step follows
  kApplied,   // server: it has been applied
  kValues,    // both: elements of one of the arrays
  kWaiting,   // server: your pull is not forgotten
  kWish,      // worker: let all workers end
  // Workers on the server's machine.
  kMemory,  // worker: memory of mine that may be used; server: it is, or it is not
};
inline constexpr FrameType kLastFrameType = FrameType::kMemory;
inline constexpr std::uint64_t kMaxStoreArray = 3;

// Whether workers add their gradients in every step, or each updates the weights that the servers hold: at most so far
// ahead of the slowest, or as it comes.
enum class Mode : std::uint8_t { kSync, kBounded, kAsync };
[[nodiscard]] std::string_view name_of(Mode mode);

// Every frame's first 80 bytes, less what is constant. Fields that a type does not use are 0 (kU8 for `dtype`).
struct FrameHeader {
  FrameType type = FrameType::kBye;
  DType dtype = DType::kU8;    // kPush, kSum: f32 or f64; kValues: f32
  Wire wire = Wire::kAsIs;     // how they travel
  std::uint64_t sequence = 0;  // of the frame among those that its sender has sent on this connection, from 0
  std::uint64_t call = 0;      // the number of the collective, from 1, the same on every rank; kValues: the array
  std::uint32_t rank = 0;      // kPush, kTake, kGive: whose; kWho: the suspect, or kNoRank
  std::uint32_t payload_bytes = 0;
  std::uint64_t count = 0;  // elements of the whole buffer
  std::uint64_t begin = 0;  // the payload is elements [begin, end) of it
  std::uint64_t end = 0;
  std::uint64_t wanted_begin = 0;  // kPush: elements of the sum that are to come back, within [begin, end)
  std::uint64_t wanted_end = 0;
  std::uint64_t payload_hash = 0;  // low half of the payload's xxh3-128; 0 without a payload

  friend bool operator==(const FrameHeader&, const FrameHeader&) = default;
};

[[nodiscard]] std::array<std::byte, kHeaderBytes> encode(const FrameHeader& header);
[[nodiscard]] FrameHeader decode(std::span<const std::byte, kHeaderBytes> bytes);
// What payload_hash is for these bytes.
[[nodiscard]] std::uint64_t payload_hash_of(std::span<const std::byte> payload);

// The elements that server `part` of `parts` has of `count`.
[[nodiscard]] ElementRange range_of_part(std::uint64_t count, std::size_t part, std::size_t parts);

struct Hello {
  std::uint32_t rank = kNoRank;  // kNoRank: any that is free
  std::uint32_t world = 0;       // 0: as many as the server waits for
  std::uint32_t part = 0;        // the server is expected to hold part `part` of `parts`
  std::uint32_t parts = 1;
  std::uint32_t timeout_ms = 0;  // how long this worker may be kept waiting
  std::uint32_t silence_ms = 0;  // who says nothing for so long is lost; 0: no limit
  std::uint64_t group = 0;       // the one that server 0 took this worker into; 0 to server 0
  std::uint64_t process = 0;     // the same whenever this process comes, and no other's
  bool insists = false;          // on `rank`, which was chosen by hand; otherwise it is the rank it had before
  Mode mode = Mode::kSync;
  std::string name;  // "host node07, process 4711"; at most 256 bytes

  friend bool operator==(const Hello&, const Hello&) = default;
};
[[nodiscard]] std::vector<std::byte> encode(const Hello& hello);
// Throws Error(kUsage) that names both modes when the worker's is another than expected.
[[nodiscard]] Hello decode_hello(std::span<const std::byte> payload, Mode expected = Mode::kSync);

struct Welcome {
  std::uint32_t rank = 0;
  std::uint32_t world = 1;
  std::uint64_t group = 0;

  friend bool operator==(const Welcome&, const Welcome&) = default;
};
[[nodiscard]] std::vector<std::byte> encode(const Welcome& welcome);
[[nodiscard]] Welcome decode_welcome(std::span<const std::byte> payload);

struct Who {
  std::uint32_t waited_ms = 0;
  std::string call;  // "all_reduce_sum of 1000 f32"

  friend bool operator==(const Who&, const Who&) = default;
};
[[nodiscard]] std::vector<std::byte> encode(const Who& who);
[[nodiscard]] Who decode_who(std::span<const std::byte> payload);

// A worker's memory, as it can be found by a server on its machine (shared_memory.h); without bytes: given back.
struct SharedMemory {
  std::uint64_t number = 0;  // among those of this worker
  std::uint64_t bytes = 0;
  std::uint32_t process = 0;
  std::uint32_t descriptor = 0;
  std::array<std::byte, 32> secret = {};  // what it begins with

  friend bool operator==(const SharedMemory&, const SharedMemory&) = default;
};
[[nodiscard]] std::vector<std::byte> encode(const SharedMemory& memory);
[[nodiscard]] SharedMemory decode_shared_memory(std::span<const std::byte> payload);

// The server's answer.
struct MemoryUse {
  std::uint64_t number = 0;
  bool is_used = false;

  friend bool operator==(const MemoryUse&, const MemoryUse&) = default;
};
[[nodiscard]] std::vector<std::byte> encode(const MemoryUse& use);
[[nodiscard]] MemoryUse decode_memory_use(std::span<const std::byte> payload);

// kPush with kInMemory: where the first element lies.
struct Place {
  std::uint64_t memory = 0;  // its number
  std::uint64_t offset = 0;  // in bytes

  friend bool operator==(const Place&, const Place&) = default;
};
inline constexpr std::size_t kPlaceBytes = 16;
[[nodiscard]] std::vector<std::byte> encode(const Place& place);
[[nodiscard]] Place decode_place(std::span<const std::byte> payload);

// An Error, for the other side to throw. Codes other than kUsage, kCorrupt, kPeerLost and kTimeout become kPeerLost.
[[nodiscard]] std::vector<std::byte> encode(const Error& error);
[[nodiscard]] Error decode_error(std::span<const std::byte> payload);

}  // namespace lockstep::server
