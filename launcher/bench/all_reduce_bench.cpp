#include "launcher/bench/all_reduce_bench.h"

#include <algorithm>

#include "base/buffer.h"
#include "launcher/bench/measure.h"
#include "trainer/stopwatch.h"

namespace lockstep {
namespace {

// Enough for the clock, and little enough for the round to be one moment.
constexpr std::uint64_t kBytesARound = std::uint64_t{128} << 20;
// Where ranks wait for a core, a sum takes as long as the system gives a process.
constexpr double kMsARound = 500;
constexpr int kFirstRepeats = 10;

int repeats_for(std::uint64_t size_bytes) {
  return static_cast<int>(std::clamp<std::uint64_t>(kBytesARound / size_bytes, 1, 500));
}

double time_lockstep(const BufferView& data, int repeats, Communicator& communicator) {
  communicator.barrier();
  const double begin_ms = now_ms();
  for (int i = 0; i < repeats; ++i) {
    communicator.all_reduce_sum(data).wait();
  }
  return (now_ms() - begin_ms) / repeats;
}

AllReduceBenchRow bench_size(const BufferView& data, Yardstick* bare, int rounds, Communicator& communicator) {
  int repeats = std::min(repeats_for(data.size_bytes()), kFirstRepeats);
  std::vector<double> ours;
  std::vector<double> library;
  std::vector<double> bares;
  std::vector<double> of_library;
  std::vector<double> of_bare;
  for (int round = -1; round < rounds; ++round) {
    const double our_ms = time_lockstep(data, repeats, communicator);
    const double library_ms = communicator.time_library_sum(data, repeats);
    const double bare_ms = bare != nullptr ? bare->time_sum(data.count, repeats) : 0;
    if (round < 0) {  // to warm up
      const double slowest_ms = max_over_ranks(communicator, std::max({our_ms, library_ms, bare_ms}));
      repeats = std::clamp(static_cast<int>(kMsARound / slowest_ms), 1, repeats_for(data.size_bytes()));
      continue;
    }
    ours.push_back(our_ms);
    library.push_back(library_ms);
    bares.push_back(bare_ms);
    of_library.push_back(library_ms / our_ms);
    of_bare.push_back(bare_ms / our_ms);
  }
  AllReduceBenchRow row{.size_bytes = data.size_bytes(),
                        .lockstep_ms = median(ours),
                        .library_ms = std::nullopt,
                        .bare_ms = std::nullopt,
                        .of_library = std::nullopt,
                        .of_ceiling = std::nullopt};
  if (median(library) > 0) {
    row.library_ms = median(library);
    row.of_library = median(of_library);
  }
  if (bare != nullptr) {
    row.bare_ms = median(bares);
    row.of_ceiling = median(of_bare);
  }
  return row;
}

}  // namespace

std::vector<AllReduceBenchRow> bench_all_reduce(const BufferView& data, std::uint64_t min_bytes, int rounds,
                                                Yardstick* bare, Communicator& communicator) {
  std::vector<AllReduceBenchRow> rows;
  for (std::uint64_t size = min_bytes; size < 4 * data.size_bytes(); size *= 4) {
    const std::uint64_t bytes = std::min<std::uint64_t>(size, data.size_bytes());
    rows.push_back(bench_size(data.slice(0, bytes / sizeof(float)), bare, rounds, communicator));
  }
  return rows;
}

}  // namespace lockstep
