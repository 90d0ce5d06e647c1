// Single kernels of a model on its device: those that memory limits beside a copy, and attention beside matrix
// products.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "launcher/bench/measure.h"

namespace lockstep {

struct MemoryBenchRow {
  std::string name;
  double bytes = 0;        // read and written, each once
  double bytes_per_s = 0;  // median over the rounds
  double of_ceiling = 0;   // median of the rounds' ratios
};
struct MemoryBenchResult {
  double ceiling_bytes_per_s = 0;  // of a copy, reads and writes counted
  std::vector<MemoryBenchRow> rows;
};
// Collective: all ranks at the same time; figures are rank 0's.
[[nodiscard]] MemoryBenchResult bench_memory(const BenchModel& model, int rounds, Communicator& communicator);

struct AttentionBenchRow {
  std::string name;
  double flop = 0;  // of the scores and values that the causal mask leaves
  double ms = 0;
  double flop_per_s = 0;
  double of_ceiling = 0;
};
struct AttentionBenchResult {
  double ceiling_flop_per_s = 0;  // of matrix products in the same dtype
  std::vector<AttentionBenchRow> rows;
  std::string note;  // of the backend
};
// Collective, likewise.
[[nodiscard]] AttentionBenchResult bench_attention(const BenchModel& model, int rounds, Communicator& communicator);

}  // namespace lockstep
