#include "comm/server/store_protocol.h"

#include <algorithm>
#include <cmath>

#include "comm/server/payload.h"

namespace lockstep::server {
namespace {

// Room in a frame for the numbers before the text.
constexpr std::size_t kMaxDescriptionBytes = kMaxPayloadBytes - 64;

// A number of which `last` is the largest.
template <typename T>
T checked(std::uint32_t value, T last, const char* what) {
  if (value > static_cast<std::uint32_t>(last)) {
    fail(ErrorCode::kCorrupt, "server: {} is {}, expected at most {}", what, value, static_cast<std::uint32_t>(last));
  }
  return static_cast<T>(value);
}

std::uint32_t number_of(Ending end) { return static_cast<std::uint32_t>(end); }

std::uint32_t checked_arrays(std::uint32_t arrays) {
  if (arrays != 0 && arrays != 1 && arrays != 3) {
    fail(ErrorCode::kCorrupt, "server: {} arrays, expected 0, 1 or 3", arrays);
  }
  return arrays;
}

}  // namespace

std::vector<FrameHeader> headers_of_values(StoreArray array, std::uint64_t count, ElementRange range) {
  constexpr std::uint64_t kMostElements = kMaxPayloadBytes / sizeof(float);
  std::vector<FrameHeader> headers;
  for (std::uint64_t begin = range.begin; begin < range.end; begin += kMostElements) {
    FrameHeader header{.type = FrameType::kValues, .dtype = DType::kF32, .call = static_cast<std::uint64_t>(array)};
    header.count = count;
    header.begin = begin;
    header.end = std::min(begin + kMostElements, range.end);
    headers.push_back(header);
  }
  return headers;
}

std::vector<std::byte> encode(const Open& open) {
  require(open.description.size() <= kMaxDescriptionBytes, "server: a description of {} bytes, expected at most {}",
          open.description.size(), kMaxDescriptionBytes);
  return payload_of(open.description, open.id, open.elements, open.steps, open.max_staleness, open.leads,
                    open.has_reached_end);
}

Open decode_open(std::span<const std::byte> payload) {
  Reader reader(payload, "an opening");
  Open open;
  open.id = reader.get<std::uint64_t>();
  open.elements = reader.get<std::uint64_t>();
  open.steps = reader.get<std::uint64_t>();
  open.max_staleness = reader.get<std::uint32_t>();
  open.leads = checked<std::uint32_t>(reader.get<std::uint32_t>(), 1, "whether a worker leads");
  open.has_reached_end = checked<std::uint32_t>(reader.get<std::uint32_t>(), 1, "whether a worker is at its end");
  open.description = reader.rest(kMaxDescriptionBytes);
  if (open.elements > kMaxElements) {
    fail(ErrorCode::kCorrupt, "server: {} parameters, expected at most {}", open.elements, kMaxElements);
  }
  return open;
}

std::vector<std::byte> encode(const Opened& opened) {
  return payload_of("", opened.is_initialized, opened.is_durable, opened.is_kept, opened.lead, opened.applied,
                    opened.completed);
}

Opened decode_opened(std::span<const std::byte> payload) {
  Reader reader(payload, "an answer to an opening");
  Opened opened;
  opened.is_initialized = reader.get<std::uint32_t>();
  opened.is_durable = reader.get<std::uint32_t>();
  opened.is_kept = reader.get<std::uint32_t>();
  opened.lead = reader.get<std::uint32_t>();
  opened.applied = reader.get<std::uint64_t>();
  opened.completed = reader.get<std::uint64_t>();
  reader.expect_end();
  return opened;
}

std::vector<std::byte> encode(const Start& start) { return payload_of("", start.completed); }

Start decode_start(std::span<const std::byte> payload) {
  Reader reader(payload, "a start");
  const Start start{reader.get<std::uint64_t>()};
  reader.expect_end();
  return start;
}

std::vector<std::byte> encode(const Pull& pull) {
  return payload_of("", pull.completed, pull.arrays, static_cast<std::uint32_t>(pull.when));
}

Pull decode_pull(std::span<const std::byte> payload) {
  Reader reader(payload, "a pull");
  Pull pull;
  pull.completed = reader.get<std::uint64_t>();
  pull.arrays = checked_arrays(reader.get<std::uint32_t>());
  pull.when = checked(reader.get<std::uint32_t>(), Pull::When::kNow, "the time of a pull");
  reader.expect_end();
  return pull;
}

std::vector<std::byte> encode(const Pulled& pulled) {
  return payload_of("", pulled.version, number_of(pulled.ending), pulled.lead, pulled.arrays, pulled.pushes,
                    pulled.stale_sum, pulled.stale_max, pulled.missing);
}

Pulled decode_pulled(std::span<const std::byte> payload) {
  Reader reader(payload, "an answer to a pull");
  Pulled pulled;
  pulled.version = reader.get<std::uint64_t>();
  pulled.ending = checked(reader.get<std::uint32_t>(), Ending::kFinished, "an end");
  pulled.lead = reader.get<std::uint32_t>();
  pulled.arrays = checked_arrays(reader.get<std::uint32_t>());
  pulled.pushes = reader.get<std::uint64_t>();
  pulled.stale_sum = reader.get<std::uint64_t>();
  pulled.stale_max = reader.get<std::uint64_t>();
  pulled.missing = reader.get<std::uint64_t>();
  reader.expect_end();
  return pulled;
}

std::vector<std::byte> encode(const Gradient& gradient) {
  return payload_of("", gradient.step, gradient.version, gradient.scale);
}

Gradient decode_gradient(std::span<const std::byte> payload) {
  Reader reader(payload, "a gradient");
  Gradient gradient;
  gradient.step = reader.get<std::uint64_t>();
  gradient.version = reader.get<std::uint64_t>();
  gradient.scale = reader.get<float>();
  reader.expect_end();
  if (!std::isfinite(gradient.scale)) {
    fail(ErrorCode::kCorrupt, "server: a gradient with the scale {}", gradient.scale);
  }
  return gradient;
}

std::vector<std::byte> encode(const Applied& applied) { return payload_of("", applied.step, applied.stale); }

Applied decode_applied(std::span<const std::byte> payload) {
  Reader reader(payload, "an answer to a gradient");
  Applied applied;
  applied.step = reader.get<std::uint64_t>();
  applied.stale = reader.get<std::uint64_t>();
  reader.expect_end();
  return applied;
}

std::vector<std::byte> encode(const Wish& wish) { return payload_of("", number_of(wish.ending)); }

Wish decode_wish(std::span<const std::byte> payload) {
  Reader reader(payload, "a wish");
  const Wish wish{checked(reader.get<std::uint32_t>(), Ending::kFinished, "a wish")};
  reader.expect_end();
  return wish;
}

std::vector<std::byte> encode(const Waiting& waiting) { return payload_of("", waiting.rank, waiting.completed); }

Waiting decode_waiting(std::span<const std::byte> payload) {
  Reader reader(payload, "a sign of life");
  Waiting waiting;
  waiting.rank = reader.get<std::uint32_t>();
  waiting.completed = reader.get<std::uint64_t>();
  reader.expect_end();
  return waiting;
}

}  // namespace lockstep::server
