// Memory that the ranks of a node share: an MPI shared window, one segment a rank, mapped by all of them.
#pragma once

#include <mpi.h>

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/mpi/watch.h"

namespace lockstep::mpi {

// Every segment starts at a page and is zeroed by its owner, which puts its pages near the owner's core. Freed by
// free(), which is collective; a window that is only destroyed keeps its memory until the process ends.
class SharedWindow {
 public:
  // Collective over `node`. Nothing when the node's shared memory (/dev/shm) has too little room, on all ranks alike:
  // MPI's own call would then fail on one rank and never return on the others.
  [[nodiscard]] static std::optional<SharedWindow> allocate(MPI_Comm node, std::size_t segment_bytes, Watch& watch);

  // The segment of the node's rank `local_rank`, at this process's address for it.
  [[nodiscard]] std::byte* segment(std::size_t local_rank) const { return segments_[local_rank]; }
  [[nodiscard]] std::size_t segment_bytes() const { return segment_bytes_; }
  void free();

 private:
  SharedWindow(MPI_Win window, std::vector<std::byte*> segments, std::size_t segment_bytes)
      : window_(window), segments_(std::move(segments)), segment_bytes_(segment_bytes) {}

  MPI_Win window_ = MPI_WIN_NULL;
  std::vector<std::byte*> segments_;
  std::size_t segment_bytes_ = 0;
};

}  // namespace lockstep::mpi
