// What the benchmarks share: the model they measure, the machine's limit, and how figures are told.
//
// The machine's limit is measured in the same rounds as the thing itself, because other work on the machine slows both:
// a ratio is the median over the rounds.
#pragma once

#include <vector>

#include "base/dtype.h"
#include "comm/communicator.h"
#include "ops/backend.h"
#include "trainer/config.h"
#include "trainer/device.h"

namespace lockstep {

// The configuration of a training run, resolved for this job.
struct BenchModel {
  Config config;
  DeviceChoice device = {};
  bool has_data = false;  // data.train is a dataset
};
// Collective. The vocabulary comes from data.train when that is a dataset, otherwise from model.vocab. Throws
// AgreedError(kUsage).
[[nodiscard]] BenchModel resolve_bench_model(const Config& config, Communicator& communicator);

// The sum over the ranks, and the largest of their values. Collective.
[[nodiscard]] double sum_over_ranks(Communicator& communicator, double value);
[[nodiscard]] double max_over_ranks(Communicator& communicator, double value);

// FLOP/s of all ranks' matrix products, measured by all at the same time. Collective.
[[nodiscard]] double gemm_ceiling(Communicator& communicator, Backend& backend, DType dtype);

// Of at least one value; the mean of the two in the middle of an even number.
[[nodiscard]] double median(std::vector<double> values);

// The memory that this process holds in RAM, in bytes. What it shares with other ranks counts by its share, so that the
// sum over the ranks is what the node gives; where the system does not tell that (before Linux 4.14), the most that
// this process has held, all of it.
[[nodiscard]] double resident_bytes();

}  // namespace lockstep
