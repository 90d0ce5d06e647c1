// How fast sums over the ranks are, beside the library's own and beside the bare sum in shared memory.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.h"

namespace lockstep {

struct AllReduceBenchRow {
  std::uint64_t size_bytes = 0;
  // Milliseconds of one sum, medians over the rounds.
  double lockstep_ms = 0;
  double library_ms = 0;          // MPI_Allreduce; 0 on one rank
  std::optional<double> bare_ms;  // where there is one
  // Lockstep's speed over the others', medians of the rounds' ratios.
  double of_library = 0;
  std::optional<double> of_ceiling;  // of the bare sum
};

struct AllReduceBenchResult {
  std::vector<AllReduceBenchRow> rows;
  std::string note;  // why there is no bare sum, where the machine has no room for it
};

// Collective: sums of f32 in memory of Communicator::allocate(), of 4 KiB, 16 KiB and so on, and of `max_bytes`.
[[nodiscard]] AllReduceBenchResult bench_all_reduce(std::uint64_t max_bytes, int rounds, Communicator& communicator);

}  // namespace lockstep
