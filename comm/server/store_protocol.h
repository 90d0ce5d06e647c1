// The payloads of frames between workers and parameter servers that hold the weights (comm.mode bounded and async), as
// docs/server-protocol.md specifies them. Like protocol.h: pure functions, and what reads throws Error(kCorrupt).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "comm/server/protocol.h"

namespace lockstep::server {

// What kValues has in `call`.
enum class StoreArray : std::uint8_t { kWeights = 1, kExpAvg = 2, kExpAvgSq = 3 };  // a gradient goes as the first

// Of the frames in which elements `range` of an array of `count` travel, one behind the other.
[[nodiscard]] std::vector<FrameHeader> headers_of_values(StoreArray array, std::uint64_t count, ElementRange range);

struct Open {
  std::uint64_t id = 0;        // of the process, random: it may come again, another one may not take its place
  std::uint64_t elements = 0;  // of the flat parameters, over all servers
  std::uint64_t steps = 0;     // that each rank is to take
  std::uint32_t max_staleness = 0;
  std::uint32_t leads = 0;            // 1: this worker was the leading one so far
  std::uint32_t has_reached_end = 0;  // 1: it begins no step any more
  std::string description;  // of the update rule, and of what is trained: the same for all workers, lines of text

  friend bool operator==(const Open&, const Open&) = default;
};
[[nodiscard]] std::vector<std::byte> encode(const Open& open);
[[nodiscard]] Open decode_open(std::span<const std::byte> payload);

struct Opened {
  std::uint32_t is_initialized = 0;
  std::uint32_t is_durable = 0;  // the server can be killed and started again
  std::uint32_t is_kept = 0;     // the weights are an earlier process's of it, and no worker has led since
  std::uint32_t lead = kNoRank;  // see Pulled
  std::uint64_t applied = 0;     // updates
  std::uint64_t completed = 0;   // the worker's steps of which this server has applied the gradient

  friend bool operator==(const Opened&, const Opened&) = default;
};
[[nodiscard]] std::vector<std::byte> encode(const Opened& opened);
[[nodiscard]] Opened decode_opened(std::span<const std::byte> payload);

// The three arrays follow in kValues. Answered by Opened.
struct Start {
  std::uint64_t completed = 0;  // steps of every rank that lie behind this state

  friend bool operator==(const Start&, const Start&) = default;
};
[[nodiscard]] std::vector<std::byte> encode(const Start& start);
[[nodiscard]] Start decode_start(std::span<const std::byte> payload);

enum class Ending : std::uint8_t {
  kNone,
  kStopped,   // as somebody asked
  kFinished,  // as the leading worker decided
};

struct Pull {
  enum class When : std::uint8_t {
    kStep,  // for the worker's next step: when the mode allows it to begin
    kEnd,   // when every worker has come to its end, and, for one that does not lead, the leading one is gone
    kNow,
  };
  std::uint64_t completed = 0;  // the worker's steps so far
  std::uint32_t arrays = 1;     // 0: none; 1: weights; 3: moments as well
  When when = When::kStep;

  friend bool operator==(const Pull&, const Pull&) = default;
};
[[nodiscard]] std::vector<std::byte> encode(const Pull& pull);
[[nodiscard]] Pull decode_pull(std::span<const std::byte> payload);

struct Pulled {
  std::uint64_t version = 0;      // updates that are in the weights
  Ending ending = Ending::kNone;  // otherwise no further step begins
  std::uint32_t lead = kNoRank;   // the rank that evaluates and saves; known to the first server alone
  std::uint32_t arrays = 0;       // that follow in kValues
  // Of the updates since the first: their number, by how many others' they were behind in sum and at most.
  std::uint64_t pushes = 0;
  std::uint64_t stale_sum = 0;
  std::uint64_t stale_max = 0;
  std::uint64_t missing = 0;  // steps of lost workers, at the end

  friend bool operator==(const Pulled&, const Pulled&) = default;
};
[[nodiscard]] std::vector<std::byte> encode(const Pulled& pulled);
[[nodiscard]] Pulled decode_pulled(std::span<const std::byte> payload);

// The gradient follows in kValues. Answered by Applied, also when the server had it already.
struct Gradient {
  std::uint64_t step = 0;     // the worker's, from 0
  std::uint64_t version = 0;  // of the weights that it was computed from
  float scale = 1;            // what it is to be multiplied by

  friend bool operator==(const Gradient&, const Gradient&) = default;
};
[[nodiscard]] std::vector<std::byte> encode(const Gradient& gradient);
[[nodiscard]] Gradient decode_gradient(std::span<const std::byte> payload);

struct Applied {
  std::uint64_t step = 0;
  std::uint64_t stale = 0;  // updates of others between the pull and this one

  friend bool operator==(const Applied&, const Applied&) = default;
};
[[nodiscard]] std::vector<std::byte> encode(const Applied& applied);
[[nodiscard]] Applied decode_applied(std::span<const std::byte> payload);

// That all workers end. Not answered, but by the ending of pulls.
struct Wish {
  Ending ending = Ending::kStopped;

  friend bool operator==(const Wish&, const Wish&) = default;
};
[[nodiscard]] std::vector<std::byte> encode(const Wish& wish);
[[nodiscard]] Wish decode_wish(std::span<const std::byte> payload);

struct Waiting {
  std::uint32_t rank = kNoRank;  // for whom, if for one
  std::uint64_t completed = 0;   // its steps

  friend bool operator==(const Waiting&, const Waiting&) = default;
};
[[nodiscard]] std::vector<std::byte> encode(const Waiting& waiting);
[[nodiscard]] Waiting decode_waiting(std::span<const std::byte> payload);

}  // namespace lockstep::server
