// Sums of host memory over MPI, of four ranks of which one does something bad: see fault_job.h.
#include <span>
#include <vector>

#include "tests/comm/fault_job.h"

namespace lockstep::test {
namespace {

constexpr std::size_t kCount = 300'000;
constexpr std::size_t kShortCount = 1'000;

void work(FaultyJob& job) {
  const auto comm =
      make_communicator({.backend = "mpi", .ranks_per_node = job.ranks_per_node, .timeout_ms = kTimeoutMs});
  job.rank = comm->rank();
  std::string& fault = job.fault;
  const auto take_suffix = [&fault](const std::string& suffix) {
    const bool is_there = fault.ends_with(suffix);
    fault.resize(fault.size() - (is_there ? suffix.size() : 0));
    return is_there;
  };
  const bool is_short = take_suffix("_in_short_sums");
  const bool is_outside = take_suffix("_outside_calls");
  const Buffer buffer = comm->allocate(kCount * sizeof(float));
  std::vector<float> elsewhere(kCount);
  for (int step = 0;; ++step) {
    const bool is_guilty = step == kDeedInStep && job.rank == kGuiltyRank;
    if (is_guilty) {
      do_deed(fault, job.folder);
    }
    if (is_outside && step == kDeedInStep) {  // waiting for something else
      for (;; std::this_thread::sleep_for(std::chrono::milliseconds(20))) {
        comm->check_peers();
      }
    }
    if (is_short) {  // of a size that is summed by who waits for it
      comm->all_reduce_sum(view_of(std::span(elsewhere).first(kShortCount))).wait();
      continue;
    }
    const std::size_t count = is_guilty && fault == "mismatch" ? kCount - 1 : kCount;
    Work first = comm->all_reduce_sum(view_of(buffer.as<float>(count)));
    Work second = comm->all_reduce_sum(view_of(std::span(elsewhere).first(count)));
    second.wait();
    first.wait();
  }
}

}  // namespace
}  // namespace lockstep::test

int main(int argc, char** argv) { return lockstep::test::run_faulty_job(argc, argv, lockstep::test::work); }
