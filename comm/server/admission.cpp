#include "comm/server/admission.h"

#include <algorithm>
#include <cstdint>

#include "base/error.h"

namespace lockstep::server {

void expect_part(int part, int parts) {
  require(parts >= 1 && part >= 0 && part < parts, "server: part {} of {}, expected one of 1 to {}", part + 1, parts,
          parts);
}

void expect_same_part(const Hello& hello, int part, int parts) {
  require(hello.part == static_cast<std::uint32_t>(part) && hello.parts == static_cast<std::uint32_t>(parts),
          "server: the worker takes this server for part {}/{}, but it was started with --part {}/{}; comm.servers "
          "lists all servers in the order of their parts",
          hello.part + std::uint64_t{1}, hello.parts, part + 1, parts);
}

std::chrono::milliseconds patience_of(const Hello& hello) {
  constexpr std::chrono::milliseconds kLeast{10};
  return std::max(std::chrono::milliseconds(hello.timeout_ms), kLeast);
}

}  // namespace lockstep::server
