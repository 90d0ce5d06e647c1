#include "comm/mpi/check.h"

#include <array>
#include <string_view>

#include "base/error.h"

namespace lockstep::mpi {

void check(int result, const char* function) {
  if (result == MPI_SUCCESS) {
    return;
  }
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(result, text.data(), &length);
  fail(ErrorCode::kPeerLost, "comm: {} failed: {}", function,
       std::string_view(text.data(), static_cast<std::size_t>(length)));
}

}  // namespace lockstep::mpi
