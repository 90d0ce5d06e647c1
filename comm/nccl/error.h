// What a result of NCCL means to this program. Pure.
#pragma once

#include <nccl.h>

#include <string_view>

#include "base/error.h"

namespace lockstep::nccl {

// Success, or an operation that goes on: no reason to stop.
[[nodiscard]] constexpr bool is_good(ncclResult_t result) { return result == ncclSuccess || result == ncclInProgress; }

// The code of the Error for `result`. ncclInProgress fails only when it has lasted for too long.
[[nodiscard]] constexpr ErrorCode error_code_of(ncclResult_t result) {
  switch (result) {
    case ncclRemoteError:
      return ErrorCode::kPeerLost;
    case ncclInProgress:
      return ErrorCode::kTimeout;
    case ncclSystemError:  // shared memory, sockets, threads
      return ErrorCode::kIo;
    case ncclInvalidArgument:
    case ncclInvalidUsage:  // two ranks on one GPU, for example
      return ErrorCode::kUsage;
    default:
      return ErrorCode::kDevice;
  }
}

// NCCL's own name of it, "ncclRemoteError", to search for.
[[nodiscard]] constexpr std::string_view name_of(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "ncclSuccess";
    case ncclUnhandledCudaError:
      return "ncclUnhandledCudaError";
    case ncclSystemError:
      return "ncclSystemError";
    case ncclInternalError:
      return "ncclInternalError";
    case ncclInvalidArgument:
      return "ncclInvalidArgument";
    case ncclInvalidUsage:
      return "ncclInvalidUsage";
    case ncclRemoteError:
      return "ncclRemoteError";
    case ncclInProgress:
      return "ncclInProgress";
    default:
      return "an unknown result";
  }
}

}  // namespace lockstep::nccl
