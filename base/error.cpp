#include "base/error.h"

#include <cerrno>
#include <system_error>

namespace lockstep {

void fail_errno(const std::string& what) {
  const int error = errno;
  const ErrorCode code = error == ENOSPC || error == EDQUOT ? ErrorCode::kNoSpace : ErrorCode::kIo;
  fail(code, "{}: {}", what, std::generic_category().message(error));
}

}  // namespace lockstep
