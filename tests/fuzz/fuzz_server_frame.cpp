// Headers and payloads as a stranger's connection might bring them; what is read has to be written back the same.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "base/error.h"
#include "comm/server/protocol.h"
#include "comm/server/store_protocol.h"

namespace {

using lockstep::Error;

template <typename Read>
void try_payload(std::span<const std::byte> bytes, const Read& read) {
  try {
    const auto value = read(bytes);
    const auto again = lockstep::server::encode(value);
    if (again.size() != bytes.size()) {
      std::abort();
    }
  } catch (const Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace lockstep::server;
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  if (size >= kHeaderBytes) {
    try {
      const auto again = encode(decode(bytes.first<kHeaderBytes>()));
      if (std::memcmp(again.data(), data, kHeaderBytes) != 0) {
        std::abort();
      }
    } catch (const Error&) {
    }
  }
  for (const Mode mode : {Mode::kSync, Mode::kBounded, Mode::kAsync}) {
    try_payload(bytes, [mode](std::span<const std::byte> payload) { return decode_hello(payload, mode); });
  }
  try_payload(bytes, decode_welcome);
  try_payload(bytes, decode_who);
  try_payload(bytes, decode_shared_memory);
  try_payload(bytes, decode_memory_use);
  try_payload(bytes, decode_place);
  try_payload(bytes, decode_error);
  try_payload(bytes, decode_open);
  try_payload(bytes, decode_opened);
  try_payload(bytes, decode_start);
  try_payload(bytes, decode_pull);
  try_payload(bytes, decode_pulled);
  try_payload(bytes, decode_wish);
  try_payload(bytes, decode_gradient);
  try_payload(bytes, decode_applied);
  try_payload(bytes, decode_waiting);
  return 0;
}
