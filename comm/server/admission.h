// What a server of any mode asks of the workers that come to it.
#pragma once

#include <chrono>

#include "comm/server/protocol.h"

namespace lockstep::server {

// Throws Error(kUsage) unless `part` is one of 0 to parts - 1.
void expect_part(int part, int parts);
// Throws Error(kUsage) for a worker that takes the server `part` of `parts` for another.
void expect_same_part(const Hello& hello, int part, int parts);
// How long a worker may be kept waiting: of one that cannot wait at all, nobody could be asked.
[[nodiscard]] std::chrono::milliseconds patience_of(const Hello& hello);

}  // namespace lockstep::server
