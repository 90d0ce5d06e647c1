#include "launcher/commands/command.h"

namespace lockstep {

int exit_code_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::kUsage:
    case ErrorCode::kCorrupt:
    case ErrorCode::kUnsupported:
      return kExitUsage;
    case ErrorCode::kIo:
    case ErrorCode::kNoSpace:
    case ErrorCode::kPeerLost:
    case ErrorCode::kTimeout:
    case ErrorCode::kDevice:
    case ErrorCode::kDiverged:
      return kExitFailed;
  }
  return kExitFailed;
}

int exit_code_of(const std::exception& error) {
  const auto* const known = dynamic_cast<const Error*>(&error);
  return known == nullptr ? kExitFailed : exit_code_of(known->code());
}

}  // namespace lockstep
