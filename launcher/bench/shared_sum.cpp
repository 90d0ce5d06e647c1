#include "launcher/bench/shared_sum.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "comm/sum_kernels.h"
#include "trainer/agreement.h"
#include "trainer/stopwatch.h"

namespace lockstep {
namespace {

constexpr std::size_t kPageBytes = 4096;
// Numbers of two ranks are this far from each other, modulo 1 MiB: some caches lose one of two lines whose addresses
// differ by larger powers of two (comm/mpi/shared_window.cpp).
constexpr std::size_t kStrideBytes = 0x55000;
constexpr std::size_t kStrideModulus = std::size_t{1} << 20;
// Elements that are added at a time, so that what was read is still in the cache when it is written.
constexpr std::size_t kPieceElements = 8192;

std::size_t stride_of(std::size_t size_bytes) {
  return size_bytes + (kStrideModulus + kStrideBytes - size_bytes % kStrideModulus) % kStrideModulus;
}

// A file descriptor of shared memory, under a name that rank 0 takes away again when it is destroyed.
class SharedFile {
 public:
  SharedFile(std::string name, bool is_owner) : name_(std::move(name)), is_owner_(is_owner) {}
  ~SharedFile() {
    if (file_ >= 0) {
      ::close(file_);
    }
    if (is_owner_ && file_ >= 0) {
      ::shm_unlink(name_.c_str());
    }
  }
  SharedFile(const SharedFile&) = delete;
  SharedFile& operator=(const SharedFile&) = delete;

  void open(std::size_t size_bytes) {
    file_ = ::shm_open(name_.c_str(), is_owner_ ? O_RDWR | O_CREAT | O_EXCL : O_RDWR, 0600);
    if (file_ < 0 || (is_owner_ && ::ftruncate(file_, static_cast<off_t>(size_bytes)) != 0)) {
      fail_errno("shared memory");
    }
  }
  // Takes the pages of a part now: on a first touch, memory that is not there ends the process.
  void take(std::size_t offset_bytes, std::size_t size_bytes) const {
    errno = ::posix_fallocate(file_, static_cast<off_t>(offset_bytes), static_cast<off_t>(size_bytes));
    if (errno != 0) {
      fail_errno(fmt::format("{} MiB of shared memory", size_bytes >> 20));
    }
  }
  [[nodiscard]] void* map(std::size_t size_bytes) const {
    void* const memory = ::mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0);
    if (memory == MAP_FAILED) {
      fail_errno("map shared memory");
    }
    return memory;
  }

 private:
  std::string name_;
  bool is_owner_;
  int file_ = -1;
};

}  // namespace

bool SharedSum::is_possible(const Communicator& communicator) {
  const auto world = static_cast<std::size_t>(communicator.world_size());
  return world > 1 && world <= comm_detail::kMaxFold && (world & (world - 1)) == 0 &&
         communicator.node_size() == communicator.world_size();
}

SharedSum::SharedSum(Communicator& communicator, std::size_t max_count)
    : communicator_(communicator),
      rank_(static_cast<std::size_t>(communicator.rank())),
      world_(static_cast<std::size_t>(communicator.world_size())),
      max_count_(stride_of(max_count * sizeof(float)) / sizeof(float)),
      size_bytes_(kPageBytes + world_ * max_count_ * sizeof(float)) {
  const std::string name =
      communicator.broadcast_text(fmt::format("/lockstep-bench-{}-{:.0f}", ::getpid(), now_ms()), 0);
  SharedFile shared(name, rank_ == 0);
  run_agreed(communicator, [&] {
    if (rank_ == 0) {
      shared.open(size_bytes_);
      shared.take(0, kPageBytes);
    }
  });
  // Every rank takes its own part, as near to it as the machine has memory.
  run_agreed(communicator, [&] {
    if (rank_ != 0) {
      shared.open(size_bytes_);
    }
    shared.take(kPageBytes + rank_ * max_count_ * sizeof(float), max_count_ * sizeof(float));
  });
  run_agreed(communicator, [&] { memory_ = shared.map(size_bytes_); });
  static_cast<void>(::madvise(memory_, size_bytes_, MADV_HUGEPAGE));
  head_ = static_cast<Head*>(memory_);  // zero, as atomics begin
  std::fill_n(numbers_of(rank_), max_count_, 0.0F);
  communicator.barrier();
}

SharedSum::~SharedSum() {
  if (memory_ != nullptr) {
    ::munmap(memory_, size_bytes_);
  }
}

float* SharedSum::numbers_of(std::size_t rank) const {
  return reinterpret_cast<float*>(static_cast<std::byte*>(memory_) + kPageBytes) + rank * max_count_;
}

void SharedSum::barrier() {
  constexpr int kSpins = 2000;
  const std::uint32_t round = head_->round.load(std::memory_order_relaxed);
  if (head_->arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == world_) {
    head_->arrived.store(0, std::memory_order_relaxed);
    head_->round.store(round + 1, std::memory_order_release);
    return;
  }
  for (int spin = 0; head_->round.load(std::memory_order_acquire) == round; ++spin) {
    if (spin > kSpins) {
      ::sched_yield();
    }
  }
}

double SharedSum::time_sum(std::size_t count, int repeats) {
  const std::size_t begin = count * rank_ / world_;
  const std::size_t end = count * (rank_ + 1) / world_;
  std::vector<const float*> sources(world_);
  std::vector<float*> destinations(world_);
  communicator_.barrier();
  const double begin_ms = now_ms();
  for (int i = 0; i < repeats; ++i) {
    barrier();
    for (std::size_t at = begin; at < end; at += kPieceElements) {
      for (std::size_t r = 0; r < world_; ++r) {
        destinations[r] = numbers_of(r) + at;
        sources[r] = destinations[r];
      }
      comm_detail::fold(sources.data(), world_, destinations.data(), world_, std::min(kPieceElements, end - at));
    }
    barrier();
  }
  return (now_ms() - begin_ms) / repeats;
}

}  // namespace lockstep
