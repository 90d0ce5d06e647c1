// The one exception type of the project.
//
// The code tells the program what to do (exit code, retry, fall back); the message tells a person what happened, in one
// line: the operation, the object, what was found and what was expected. For example
//   pack: corpus.jsonl line 812: "text" is missing
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace lockstep {

enum class ErrorCode {
  kUsage,        // bad flag, configuration or input: nothing was changed, exit code 2
  kCorrupt,      // a file does not hold what its format or checksum promises, exit code 2
  kIo,           // the operating system refused a read or a write
  kNoSpace,      // the disk is full
  kPeerLost,     // another rank died; the message names it
  kTimeout,      // another rank did not answer before the deadline; the message names it
  kDevice,       // a GPU failed, or its memory is too small; the message names it
  kDiverged,     // a loss or a gradient is not finite
  kUnsupported,  // this build or this machine cannot do what was asked, exit code 2
};

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}

  [[nodiscard]] ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

// Throws Error(code) with the formatted message.
template <typename... Args>
[[noreturn]] void fail(ErrorCode code, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(code, fmt::format(format, std::forward<Args>(args)...));
}

// Throws Error(kUsage) with the formatted message unless `condition` holds: for what a caller or a user got wrong.
// Our own invariants use assert().
template <typename... Args>
void require(bool condition, fmt::format_string<Args...> format, Args&&... args) {
  if (!condition) {
    throw Error(ErrorCode::kUsage, fmt::format(format, std::forward<Args>(args)...));
  }
}

// Throws Error(kNoSpace) when errno is ENOSPC or EDQUOT and Error(kIo) otherwise: "<what>: <text of errno>".
[[noreturn]] void fail_errno(const std::string& what);

}  // namespace lockstep
