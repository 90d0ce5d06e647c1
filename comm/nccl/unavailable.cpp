// The twin of communicator.cpp in a build without CUDA.
#include "base/error.h"
#include "comm/nccl/communicator.h"

namespace lockstep {

std::unique_ptr<Communicator> make_nccl_communicator(const CommOptions& /*options*/, Communicator& /*host*/) {
  fail(ErrorCode::kUnsupported, "comm.backend: nccl: this program was built without CUDA");
}

}  // namespace lockstep
