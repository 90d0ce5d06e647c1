// Sums of GPU memory over NCCL, of four ranks of which one does something bad: see fault_job.h.
#include "base/cuda/runtime.h"
#include "comm/nccl/communicator.h"
#include "tests/comm/fault_job.h"

namespace lockstep::test {
namespace {

constexpr std::size_t kCount = 300'000;

void work(FaultyJob& job) {
  const CommOptions options = {.backend = "mpi", .ranks_per_node = job.ranks_per_node, .timeout_ms = kTimeoutMs};
  const auto host = make_communicator(options);
  job.rank = host->rank();
  cuda::use_device(job.rank);
  const auto comm = make_nccl_communicator(options, *host);
  const Buffer buffer = cuda::allocate_device(kCount * sizeof(float));
  const BufferView data{buffer.data(), kCount, DType::kF32, {DeviceKind::kCuda, static_cast<std::uint8_t>(job.rank)}};
  for (int step = 0;; ++step) {
    if (step == kDeedInStep && job.rank == kGuiltyRank) {
      do_deed(job.fault, job.folder);
    }
    comm->all_reduce_sum(data).wait();
  }
}

}  // namespace
}  // namespace lockstep::test

int main(int argc, char** argv) { return lockstep::test::run_faulty_job(argc, argv, lockstep::test::work); }
