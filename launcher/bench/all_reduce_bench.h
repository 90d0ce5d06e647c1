// How fast sums over the ranks are, beside the library's own and beside the machine's limit.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "comm/communicator.h"
#include "launcher/bench/yardstick.h"

namespace lockstep {

struct AllReduceBenchRow {
  std::uint64_t size_bytes = 0;
  // Milliseconds of one sum, medians over the rounds.
  double lockstep_ms = 0;
  std::optional<double> library_ms;  // MPI_Allreduce or ncclAllReduce, where there is one
  std::optional<double> bare_ms;     // where there is one
  // Lockstep's speed over the others', medians of the rounds' ratios.
  std::optional<double> of_library;
  std::optional<double> of_ceiling;  // of the yardstick
};

// Collective: sums of the f32 in `data`, which are zeros, of its first `min_bytes`, four times as many and so on, and
// of all of it. `bare`: null for none.
[[nodiscard]] std::vector<AllReduceBenchRow> bench_all_reduce(const BufferView& data, std::uint64_t min_bytes,
                                                              int rounds, Yardstick* bare, Communicator& communicator);

}  // namespace lockstep
