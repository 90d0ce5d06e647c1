// How fast a whole training step is, beside what the machine's matrix products reach, and where its time goes.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "launcher/bench/measure.h"
#include "launcher/bench/timed_backend.h"

namespace lockstep {

struct StepBenchResult {
  double step_ms = 0;             // median over the rounds
  double tokens_per_s = 0;        // of all ranks
  double flop_per_s = 0;          // of the model (Chowdhery et al. 2022), all ranks together
  double ceiling_flop_per_s = 0;  // median over the rounds
  double of_ceiling = 0;          // median of the rounds' ratios
  // Of rank 0, milliseconds a step on average, adding up to the mean step.
  std::vector<std::pair<std::string, double>> parts;
  double gemm_flop_per_s = 0;          // within the step's layers, rank 0
  std::vector<double> resident_bytes;  // by rank, after the last step
  double device_bytes = 0;             // of a GPU's memory, rank 0
};

// Collective: some steps to warm up, then `rounds` rounds of the ceiling and a step. Batches come from data.train where
// that is a dataset; otherwise they are random tokens.
[[nodiscard]] StepBenchResult bench_step(const BenchModel& model, int rounds, Communicator& communicator);

// Collective: the products of one step of this rank.
[[nodiscard]] std::vector<GemmCalls> gemms_of_step(const BenchModel& model, Communicator& communicator);

}  // namespace lockstep
