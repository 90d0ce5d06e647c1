// How fast each matrix product of a model is by itself, beside the best that the machine's products reach.
#pragma once

#include <vector>

#include "comm/communicator.h"
#include "launcher/bench/measure.h"
#include "launcher/bench/timed_backend.h"

namespace lockstep {

struct GemmBenchRow {
  GemmCalls shape;        // calls: in one step of rank 0
  double flop_per_s = 0;  // of all ranks together, each computing the product at the same time
  double of_ceiling = 0;  // median of the rounds' ratios
};

struct GemmBenchResult {
  double ceiling_flop_per_s = 0;  // median over the rounds
  std::vector<GemmBenchRow> rows;
  double of_ceiling = 0;  // of one step's products together, weighted by what they compute
};

// Collective: one step to learn which products there are, then `rounds` rounds of the ceiling and each product.
[[nodiscard]] GemmBenchResult bench_gemm(const BenchModel& model, int rounds, Communicator& communicator);

}  // namespace lockstep
