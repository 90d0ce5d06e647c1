#include "data/text/gguf_reader.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/error.h"

namespace lockstep {
namespace {

constexpr std::size_t kWindowBytes = std::size_t{1} << 18;

// Bytes that a value takes at least; a string or an array has a length of its own first.
std::uint64_t smallest_size(GgufType type) {
  switch (type) {
    case GgufType::kU8:
    case GgufType::kI8:
    case GgufType::kBool:
      return 1;
    case GgufType::kU16:
    case GgufType::kI16:
      return 2;
    case GgufType::kU32:
    case GgufType::kI32:
    case GgufType::kF32:
      return 4;
    case GgufType::kU64:
    case GgufType::kI64:
    case GgufType::kF64:
    case GgufType::kString:
      return 8;
    case GgufType::kArray:
      return 12;
  }
  return 1;
}

}  // namespace

GgufReader::GgufReader(Source source, std::uint64_t size, std::string_view name)
    : source_(std::move(source)), size_(size), name_(name) {}

void GgufReader::require_left(std::uint64_t bytes, std::string_view what) const {
  if (bytes > size_ - position_) {
    fail(ErrorCode::kCorrupt, "{}: {} at byte {} needs {} bytes, but the file has only {} more", name_, what, position_,
         bytes, size_ - position_);
  }
}

void GgufReader::read(std::span<std::byte> bytes, std::string_view what) {
  require_left(bytes.size(), what);
  std::size_t done = 0;
  while (done < bytes.size()) {
    const std::uint64_t at = position_ + done;
    if (at < window_start_ || at >= window_start_ + window_.size()) {
      window_.resize(static_cast<std::size_t>(std::min<std::uint64_t>(kWindowBytes, size_ - at)));
      window_.resize(source_(at, window_));
      window_start_ = at;
      if (window_.empty()) {
        fail(ErrorCode::kCorrupt, "{}: ends at byte {}, inside {}", name_, at, what);
      }
    }
    const auto from = static_cast<std::size_t>(at - window_start_);
    const std::size_t count = std::min(bytes.size() - done, window_.size() - from);
    std::memcpy(bytes.data() + done, window_.data() + from, count);
    done += count;
  }
  position_ += bytes.size();
}

template <typename T>
T GgufReader::integer(std::string_view what) {
  std::array<std::byte, sizeof(T)> bytes{};
  read(bytes, what);
  std::uint64_t value = 0;
  for (std::size_t i = sizeof(T); i-- > 0;) {
    value = value << 8 | std::to_integer<std::uint64_t>(bytes[i]);
  }
  return static_cast<T>(value);
}

std::uint8_t GgufReader::u8(std::string_view what) { return integer<std::uint8_t>(what); }

std::uint16_t GgufReader::u16(std::string_view what) { return integer<std::uint16_t>(what); }

std::uint32_t GgufReader::u32(std::string_view what) { return integer<std::uint32_t>(what); }

std::uint64_t GgufReader::u64(std::string_view what) { return integer<std::uint64_t>(what); }

bool GgufReader::boolean(std::string_view what) { return integer<std::uint8_t>(what) != 0; }

std::string GgufReader::string(std::string_view what, std::size_t max_bytes) {
  const std::uint64_t at = position_;
  const std::uint64_t length = u64(what);
  require_left(length, what);
  if (length > max_bytes) {
    fail(ErrorCode::kCorrupt, "{}: {} at byte {} is {} bytes long, expected at most {}", name_, what, at, length,
         max_bytes);
  }
  std::string text(static_cast<std::size_t>(length), '\0');
  read(std::as_writable_bytes(std::span(text)), what);
  return text;
}

GgufType GgufReader::type(std::string_view what) {
  const std::uint64_t at = position_;
  const std::uint32_t value = u32(what);
  if (value > static_cast<std::uint32_t>(GgufType::kF64)) {
    fail(ErrorCode::kCorrupt, "{}: {} at byte {} has the type {}, expected 0 to 12", name_, what, at, value);
  }
  return static_cast<GgufType>(value);
}

GgufReader::Array GgufReader::array(std::string_view what) {
  const GgufType element = type(what);
  const std::uint64_t at = position_;
  const std::uint64_t count = u64(what);
  if (count > (size_ - position_) / smallest_size(element)) {
    fail(ErrorCode::kCorrupt, "{}: {} at byte {} has {} elements, but the file has only {} more bytes", name_, what, at,
         count, size_ - position_);
  }
  return {element, count};
}

void GgufReader::skip_bytes(std::uint64_t count, std::string_view what) {
  require_left(count, what);
  position_ += count;
}

void GgufReader::skip(GgufType type, std::string_view what) {
  if (type == GgufType::kString) {
    skip_bytes(u64(what), what);
    return;
  }
  if (type != GgufType::kArray) {
    skip_bytes(smallest_size(type), what);
    return;
  }
  skip_elements(array(what), what);
}

void GgufReader::skip_elements(const Array& head, std::string_view what) {
  if (head.type == GgufType::kArray) {
    fail(ErrorCode::kUnsupported, "{}: {} at byte {} is an array of arrays, which is not supported", name_, what,
         position_);
  }
  if (head.type != GgufType::kString) {
    skip_bytes(head.count * smallest_size(head.type), what);
    return;
  }
  for (std::uint64_t i = 0; i < head.count; ++i) {
    skip(GgufType::kString, what);
  }
}

}  // namespace lockstep
