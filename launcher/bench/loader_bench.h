// How fast batches come out of a dataset, beside reading its files from one end to the other.
#pragma once

#include "comm/communicator.h"
#include "launcher/bench/measure.h"

namespace lockstep {

// Of all ranks together, medians over the rounds.
struct LoaderBenchResult {
  double tokens_per_s = 0;
  double bytes_per_s = 0;          // as the tokens lie in the files
  double ceiling_bytes_per_s = 0;  // every rank reading the files in their order
  double of_ceiling = 0;           // median of the rounds' ratios
};

// Collective. `model.has_data`.
[[nodiscard]] LoaderBenchResult bench_loader(const BenchModel& model, int rounds, Communicator& communicator);

}  // namespace lockstep
