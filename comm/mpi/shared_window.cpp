#include "comm/mpi/shared_window.h"

#include <sys/mman.h>
#include <sys/statvfs.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <utility>

#include "comm/mpi/check.h"

namespace lockstep::mpi {
namespace {

constexpr std::size_t kPage = 4096;
// From this size on huge pages are asked for, where the kernel gives them to shared memory.
constexpr std::size_t kHugePage = std::size_t{2} << 20;
// A sum goes through all segments at a time, at the same element. AMD's first-level caches (Zen: ways are predicted
// from a hash of the address, bits 12 to 19 xor eight higher ones) lose one of two lines that have their place in the
// page and their hash in common: sums then took 2 to 11 times as long, depending on where a run's segments lay.
// Segments that follow one another at this distance, modulo 1 MiB, have different hashes almost anywhere, for up to 8
// ranks.
constexpr std::size_t kStride = 0x55000;
constexpr std::size_t kStrideModulus = std::size_t{1} << 20;
// Room that MPI and other programs keep.
constexpr std::uint64_t kReserveBytes = std::uint64_t{8} << 20;

std::byte* page_aligned(void* base) {
  const auto address = reinterpret_cast<std::uintptr_t>(base);
  return static_cast<std::byte*>(base) + (kPage - address % kPage) % kPage;
}

// From one segment to the next: a page more than asked for, since MPI may put a header before the first, and a rest of
// kStride.
std::size_t stride_of(std::size_t segment_bytes) {
  const std::size_t least = segment_bytes + kPage;
  return least + (kStrideModulus + kStride - least % kStrideModulus) % kStrideModulus;
}

// Whether every rank of the node finds room for all their segments.
bool has_room(MPI_Comm node, std::size_t bytes, Watch& watch) {
  struct statvfs status {};
  int ranks = 0;
  check(MPI_Comm_size(node, &ranks), "MPI_Comm_size");
  // On the heap, and left there by an error: MPI may still write to it then.
  auto* const votes = new std::array<std::uint64_t, 2>{};
  if (::statvfs("/dev/shm", &status) == 0) {
    const std::uint64_t free_bytes = std::uint64_t{status.f_bavail} * status.f_frsize;
    (*votes)[0] = free_bytes < bytes * static_cast<std::uint64_t>(ranks) + kReserveBytes ? 1 : 0;
  }
  MPI_Request request = MPI_REQUEST_NULL;
  check(MPI_Iallreduce(&(*votes)[0], &(*votes)[1], 1, MPI_UINT64_T, MPI_SUM, node, &request), "MPI_Iallreduce");
  wait_for(request, watch, -1);
  const bool fits = (*votes)[1] == 0;
  delete votes;
  return fits;
}

void barrier(MPI_Comm node, Watch& watch) {
  MPI_Request request = MPI_REQUEST_NULL;
  check(MPI_Ibarrier(node, &request), "MPI_Ibarrier");
  wait_for(request, watch, -1);
}

}  // namespace

std::optional<SharedWindow> SharedWindow::allocate(MPI_Comm node, std::size_t segment_bytes, Watch& watch) {
  const std::size_t bytes = stride_of(segment_bytes);
  if (!has_room(node, bytes, watch)) {
    return {};
  }
  int ranks = 0;
  int local_rank = 0;
  check(MPI_Comm_size(node, &ranks), "MPI_Comm_size");
  check(MPI_Comm_rank(node, &local_rank), "MPI_Comm_rank");

  MPI_Info info = MPI_INFO_NULL;
  check(MPI_Info_create(&info), "MPI_Info_create");
  check(MPI_Info_set(info, "alloc_shared_noncontig", "true"), "MPI_Info_set");
  MPI_Win window = MPI_WIN_NULL;
  void* own = nullptr;
  const int result =
      MPI_Win_allocate_shared(static_cast<MPI_Aint>(bytes), 1, info, node, static_cast<void*>(&own), &window);
  check(MPI_Info_free(&info), "MPI_Info_free");
  check(result, "MPI_Win_allocate_shared");

  std::vector<std::byte*> segments;
  for (int r = 0; r < ranks; ++r) {
    MPI_Aint size = 0;
    int unit = 0;
    void* base = nullptr;
    check(MPI_Win_shared_query(window, r, &size, &unit, static_cast<void*>(&base)), "MPI_Win_shared_query");
    // Mappings differ by whole pages between processes, so all ranks round a segment up to the same byte of it.
    segments.push_back(page_aligned(base));
  }
  std::byte* const mine = segments[static_cast<std::size_t>(local_rank)];
  if (segment_bytes >= kHugePage) {
    ::madvise(mine, segment_bytes, MADV_HUGEPAGE);
  }
  std::memset(mine, 0, segment_bytes);
  barrier(node, watch);
  return SharedWindow(window, std::move(segments), segment_bytes);
}

void SharedWindow::free() { check(MPI_Win_free(&window_), "MPI_Win_free"); }

}  // namespace lockstep::mpi
