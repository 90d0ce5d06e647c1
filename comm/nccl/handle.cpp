#include "comm/nccl/handle.h"

#include <cuda_runtime_api.h>

#include <chrono>
#include <future>
#include <thread>
#include <utility>

namespace lockstep::nccl {
namespace {

constexpr auto kAbortGrace = std::chrono::seconds(10);

}  // namespace

ncclResult_t Handle::destroy() { return library_.comm_destroy(std::exchange(comm_, nullptr)); }

void Handle::abort() noexcept {
  if (comm_ == nullptr) {
    return;
  }
  int device = 0;
  static_cast<void>(cudaGetDevice(&device));
  const ncclComm_t comm = std::exchange(comm_, nullptr);
  is_stuck_ = true;
  try {
    // The thread outlives this function where NCCL does not return, so it owns what it uses.
    std::packaged_task<void()> task([comm, device, comm_abort = library_.comm_abort] {
      static_cast<void>(cudaSetDevice(device));
      static_cast<void>(comm_abort(comm));
    });
    const std::future<void> ended = task.get_future();
    std::thread(std::move(task)).detach();
    is_stuck_ = ended.wait_for(kAbortGrace) != std::future_status::ready;
  } catch (const std::exception&) {
    // No thread was to be had: then nothing may be touched any more.
  }
}

}  // namespace lockstep::nccl
