// The file that holds the token of parameter servers and their workers: 64 hexadecimal digits, for its owner alone.
#pragma once

#include <filesystem>

#include "comm/control/token.h"
#include "comm/rank_environment.h"

namespace lockstep::server {

// What LOCKSTEP_TOKEN_FILE says, otherwise .lockstep/token in the home folder. Throws Error(kUsage) when neither is
// known.
[[nodiscard]] std::filesystem::path token_file(const EnvironmentLookup& environment);

// Throws Error(kUsage) for a file that is missing, that others than its owner can read, or that holds no token.
[[nodiscard]] control::JobToken read_token(const std::filesystem::path& path);

// Makes the file with a new token unless it is there; several processes may do so at the same time and get the same.
// Throws what read_token() throws, Error(kIo, kNoSpace).
[[nodiscard]] control::JobToken read_or_create_token(const std::filesystem::path& path);

}  // namespace lockstep::server
