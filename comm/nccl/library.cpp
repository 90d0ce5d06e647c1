#include "comm/nccl/library.h"

#include <fmt/format.h>

#include "base/cuda/library.h"

namespace lockstep::nccl {

Library::Library() {
  const cuda::SharedLibrary library("libnccl.so.2");
  library.find("ncclGetVersion", get_version);
  library.find("ncclGetErrorString", get_error_string);
  library.find("ncclGetLastError", get_last_error);
  library.find("ncclGetUniqueId", get_unique_id);
  library.find("ncclCommInitRankConfig", comm_init_rank_config);
  library.find("ncclCommGetAsyncError", comm_get_async_error);
  library.find("ncclCommFinalize", comm_finalize);
  library.find("ncclCommDestroy", comm_destroy);
  library.find("ncclCommAbort", comm_abort);
  library.find("ncclGroupStart", group_start);
  library.find("ncclGroupEnd", group_end);
  library.find("ncclSend", send);
  library.find("ncclRecv", recv);
  library.find("ncclAllReduce", all_reduce);
  library.find("ncclReduceScatter", reduce_scatter);
  library.find("ncclReduce", reduce);
  library.find("ncclAllGather", all_gather);
  library.find("ncclBroadcast", broadcast);
}

std::string Library::version() const {
  int code = 0;
  static_cast<void>(get_version(&code));
  return fmt::format("{}.{}.{}", code / 10'000, code / 100 % 100, code % 100);
}

}  // namespace lockstep::nccl
