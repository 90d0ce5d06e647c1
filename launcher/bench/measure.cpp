#include "launcher/bench/measure.h"

#include <sys/resource.h>

#include <algorithm>
#include <cassert>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <span>
#include <string>

#include "base/error.h"
#include "data/dataset.h"
#include "trainer/agreement.h"
#include "trainer/gemm_rate.h"
#include "trainer/node_cores.h"

namespace lockstep {
namespace {

std::vector<double> values_of_ranks(Communicator& communicator, double value) {
  std::vector<double> all(static_cast<std::size_t>(communicator.world_size()));
  communicator.all_gather(std::as_bytes(std::span(&value, 1)), std::as_writable_bytes(std::span(all)));
  return all;
}

}  // namespace

BenchModel resolve_bench_model(const Config& config, Communicator& communicator) {
  const int cores = cores_on_node(communicator);
  BenchModel model{.config = config};
  run_agreed(communicator, [&] {
    model.device = choose_device(config.device, config.train.precision, communicator);
    std::error_code error;
    model.has_data = std::filesystem::exists(std::filesystem::path(model.config.data.train) / "dataset.json", error);
    int vocab = model.config.model.vocab;
    if (model.has_data) {
      vocab = static_cast<int>(Dataset::open(model.config.data.train).info().tokenizer.vocabulary_size);
    }
    require(vocab > 0, "{} is no dataset, so the size of the vocabulary is not known: --set model.vocab=50257",
            model.config.data.train.empty() ? "data.train" : model.config.data.train);
    model.config = resolve(model.config, {.world_size = communicator.world_size(),
                                          .ranks_on_node = communicator.node_size(),
                                          .cores_on_node = cores,
                                          .vocab = vocab});
  });
  return model;
}

double sum_over_ranks(Communicator& communicator, double value) {
  const std::vector<double> all = values_of_ranks(communicator, value);
  return std::accumulate(all.begin(), all.end(), 0.0);
}

double max_over_ranks(Communicator& communicator, double value) {
  const std::vector<double> all = values_of_ranks(communicator, value);
  return *std::max_element(all.begin(), all.end());
}

double gemm_ceiling(Communicator& communicator, Backend& backend, DType dtype) {
  communicator.barrier();
  return sum_over_ranks(communicator, measure_gemm_rate(backend, dtype));
}

double median(std::vector<double> values) {
  assert(!values.empty());
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

double resident_bytes() {
  std::ifstream lines("/proc/self/smaps_rollup");
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("Pss:")) {
      return std::stod(line.substr(4)) * 1024;
    }
  }
  rusage usage = {};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) * 1024;
}

}  // namespace lockstep
